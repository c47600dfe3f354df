"""Logged requests with a judge of their slates: what the search for the best slates works on."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ega_jax.data.books import Books
from ega_jax.data.market.clicks import Truth
from ega_jax.evaluation.judges import SlateJudge, TrueClicks
from ega_jax.evaluation.slate_rules import Array, picked
from ega_jax.phases.requests import real_rows, request_of
from ega_jax.types import repeats_an_ad


@dataclasses.dataclass(frozen=True)
class Sample:
    """`D` requests with a judge of their slates."""

    judge: SlateJudge
    request: Any  # A `Request` of NumPy arrays, [D, ...]; the ads of a book are listed.
    asked: Any  # The request as systems take it, [D, ...]: to a book, or the same.
    poi_creatives: np.ndarray  # [P, M] int32, -1 where none.
    num_slots: int  # K.

    @functools.cached_property
    def creatives(self) -> np.ndarray:
        """Creatives `[D, N, M]` of the candidates, -1 where none."""
        item = np.asarray(self.request.item)
        return np.where((item >= 0)[..., None], self.poi_creatives[item], -1)

    def clicks(self, row: np.ndarray, slate: np.ndarray, creative: np.ndarray) -> np.ndarray:
        """Returns click probabilities `[X, K]` of slates of candidates in requests `[X]`."""
        item = picked(self.request.item, row, slate, -1)
        shown = row, item, creative, picked(self.request.is_ad, row, slate, False)
        found, size = np.zeros(slate.shape), self.judge.at_once
        for low in range(0, len(row), size):
            part = np.minimum(np.arange(low, low + size), len(row) - 1)
            found[part] = self.judge.clicks(*(x[part] for x in shown))
        return found

    def values(self, row: np.ndarray, slate: np.ndarray, creative: np.ndarray) -> np.ndarray:
        """Returns `[X]` float64, currency: each slate's sum of bid times click probability."""
        bid = picked(self.request.bid, row, slate, 0.0)
        return np.sum(bid * self.clicks(row, slate, creative), axis=-1)

    @functools.cached_property
    def clicks_alone(self) -> np.ndarray:
        """Clicks `[D, N, M]` of each candidate and creative as the only item; 0 where none."""
        there = self.creatives >= 0
        row, candidate, _ = np.nonzero(there)
        shown = candidate[:, None], self.creatives[there][:, None]
        clicks = np.zeros(self.creatives.shape)
        clicks[there] = self.clicks(row, *shown)[:, 0]
        return clicks

    @property
    def worth_alone(self) -> np.ndarray:
        """Values `[D, N]` of the candidates, each as the only item, in currency."""
        return self.request.bid * self.clicks_alone.max(-1)


def samples_of(
    batches: Iterable[Mapping[str, np.ndarray]],
    truth: Truth,
    poi_creatives: Array,
    num_slots: int,
    books: Books | None = None,
) -> Iterator[Sample]:
    """Yields a sample per batch with the fields of a request and `session`; drops blank rows.

    The truth is the judge. Organic items whose POI is also an ad are left out.

    Args:
      batches: batches of a log.
      truth: its true click probabilities.
      poi_creatives: `[P, M]` creatives of each POI, -1 where none.
      num_slots: K.
      books: its ad books, if it has any.
    """
    for batch in batches:
        real = real_rows(batch)
        kept = {name: np.asarray(x)[real] for name, x in batch.items()}
        lists = kept if books is None else kept | listed(kept, books)
        repeated = repeats_an_ad(lists["item"], lists["is_ad"])
        lists = lists | {"item": np.where(repeated, -1, lists["item"])}
        request = request_of({name: x for name, x in lists.items() if name != "book"})
        asked = request if books is None else request_of(kept)
        judge = TrueClicks(truth, kept["session"])
        yield Sample(judge, request, asked, np.asarray(poi_creatives), num_slots)


def listed(batch: Mapping[str, np.ndarray], books: Books) -> dict[str, np.ndarray]:
    """Lists of a batch's requests to books: the ads of the book, then the organic items."""
    poi, bid = books.rows(batch["book"])
    organic = batch["organic"]
    nothing = np.zeros(organic.shape)
    return {
        "item": np.concatenate([poi, organic], axis=1),
        "is_ad": np.concatenate([poi >= 0, nothing > 0], axis=1),
        "bid": np.concatenate([bid, nothing], axis=1, dtype=np.float32),
    }
