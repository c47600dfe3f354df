"""Logged requests whose bids can be changed, and what their items are called."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ega_jax.data.books import Books
from ega_jax.data.item_rules import open_pois
from ega_jax.data.texts import read_tags, read_texts
from ega_jax.phases.requests import real_requests
from ega_jax.types import Request


@dataclasses.dataclass(frozen=True)
class Names:
    """Titles and categories of POIs, and the creatives that each POI owns."""

    titles: list[str | None]  # By POI.
    categories: list[str]  # By POI, "" if unknown.
    creatives: np.ndarray  # [P, M] int32 creatives of each POI, -1 padding.

    @classmethod
    def load(cls, folder: Path, creatives: np.ndarray) -> "Names":
        """Reads the names in the folder of an ad log."""
        pois = open_pois(folder)
        tags = [" > ".join(tags) for tags in read_tags(pois, "category")]
        return cls(read_texts(pois, "title"), tags, creatives)

    def title(self, poi: int) -> str:
        """The title of a POI, or its number if it has none."""
        return self.titles[poi] or f"POI {poi}"

    def image(self, poi: int, creative: int) -> str:
        """Which of its images a POI shows, "" if it has none."""
        own = self.creatives[poi]
        place = np.flatnonzero((own == creative) & (own >= 0))
        return f"image {place[0] + 1} of {(own >= 0).sum()}" if place.size else ""


@dataclasses.dataclass(frozen=True)
class LoggedRequests:
    """The requests of some sessions of a log, with lists of their own."""

    session: np.ndarray  # [D] int32 ids in the log.
    batch: Request  # [D], of NumPy arrays.

    @classmethod
    def of(cls, batches: Iterable[Mapping[str, Any]], books: Books | None) -> "LoggedRequests":
        """Collects the sessions of batches of a log.

        Args:
          batches: as `AuctionTraining.sessions` gives them; blank rows are left out.
          books: the log's books; None if its sessions list their ads.
        """
        kept = [real_requests(batch) for batch in batches]
        rows = {name: np.concatenate([batch[name] for batch in kept]) for name in kept[0]}
        if books is not None:
            rows |= _listed(books, rows["book"], rows["organic"])
        fields: Any = {name: rows[name] for name in Request.__dataclass_fields__ if name in rows}
        return cls(rows["session"], Request(**fields))

    def __len__(self) -> int:
        """D."""
        return len(self.session)

    def request(self, number: int, ad: int = -1, bid: float = 0.0) -> Request:
        """One request as a batch `[1]`.

        Args:
          number: of the session.
          ad: candidate that bids another amount, -1 for none.
          bid: its bid, currency per click.
        """
        request = jax.tree.map(lambda x: x[number : number + 1], self.batch)
        if ad < 0:
            return request
        bids = np.array(request.bid)
        bids[0, ad] = bid
        return request.replace(bid=bids)

    def ads(self, number: int) -> list[int]:
        """The candidates of a request that are ads, highest bid first."""
        places = np.flatnonzero(self.batch.is_ad[number] & (self.batch.item[number] >= 0))
        return places[np.argsort(-self.batch.bid[number][places], kind="stable")].tolist()

    def bid(self, number: int, ad: int) -> float:
        """The logged bid of a candidate."""
        return float(self.batch.bid[number, ad])

    def highest_bid(self, number: int, ad: int) -> float:
        """The highest bid to try for an ad: above every bid of the request and twice its own."""
        bids = self.batch.bid[number]
        return float(max(1.25 * bids.max(), 2.0 * bids[ad]))


def _listed(books: Books, book: np.ndarray, organic: np.ndarray) -> dict[str, np.ndarray]:
    """The candidates `[D, N]` of requests to books: the book's ads, then organic items."""
    poi, bid = books.rows(book)
    return {
        "item": np.concatenate([poi, organic], axis=1),
        "is_ad": np.concatenate([poi >= 0, np.zeros(organic.shape, bool)], axis=1),
        "bid": np.concatenate([bid, np.zeros(organic.shape)], axis=1).astype(np.float32),
    }
