"""Bid landscapes: the clicks and the price that an advertiser would get at other bids."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ega_jax.data.books import Books
from ega_jax.evaluation.serving import Judge
from ega_jax.evaluation.visits import offer_in
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.mechanism import Mechanism
from ega_jax.phases.requests import request_of

Batch = Mapping[str, Any]
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)  # Of an advertiser's own bids.


@dataclasses.dataclass(frozen=True)
class Landscape:
    """What one advertiser gets per request if it multiplies all its bids, and the others none."""

    poi: int
    requests: int  # That were served at each bid.
    factor: np.ndarray  # [F] of its own bids.
    bid: np.ndarray  # [F] mean bid, currency per click.
    impressions: np.ndarray  # [F] per request.
    clicks: np.ndarray  # [F] expected, per request.
    price: np.ndarray  # [F] currency per click, 0 without clicks.
    surplus: np.ndarray  # [F] currency per request; its own bids are the values of a click.


@dataclasses.dataclass(frozen=True)
class Seller:
    """Serves requests in which one advertiser bids another amount."""

    mechanism: Mechanism
    books: Books | None  # The log's; None if requests have lists of their own.
    ledger: BookLedger | None  # Of these books; its bids change.
    batch_size: int

    def outcomes(self, poi: int, factor: float, requests: Batch, judge: Judge) -> np.ndarray:
        """Totals `[4]` of one advertiser's ads: impressions, clicks, spend and value.

        Args:
          poi: the advertiser.
          factor: by which its bids are multiplied, above 0.
          requests: of a log, as a batch.
          judge: tells the click probabilities.
        """
        mechanism, totals = self._bidding(poi, factor), np.zeros(4)
        for batch, real in self._batches(_with_bid(requests, poi, factor)):
            slate = jax.tree.map(np.asarray, mechanism.allocate(request_of(batch)))
            own = (slate.is_ad & (slate.items == poi) & real[:, None]).astype(np.float64)
            clicks = own * np.asarray(judge(batch, slate)[0])
            each = own, clicks, clicks * slate.price_per_click, clicks * slate.bid / factor
            totals += [x.sum() for x in each]
        return totals

    def _bidding(self, poi: int, factor: float) -> Mechanism:
        """The mechanism with the books in which the advertiser bids so."""
        if self.books is None or self.ledger is None:
            return self.mechanism
        bid = np.where(self.books.poi == poi, factor * self.books.bid, self.books.bid)
        self.ledger.replace(bid, eligible=bid >= float(self.mechanism.levers.reserve))
        return self.mechanism.with_book(self.ledger.book)

    def _batches(self, requests: Batch) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches of one size, and which of their rows are real; others repeat the last request."""
        count = len(requests["session"])
        for start in range(0, count, self.batch_size):
            rows = np.arange(start, start + self.batch_size)
            filled = np.minimum(rows, count - 1)
            some = {name: np.asarray(x)[filled] for name, x in requests.items()}
            yield some, rows < count


def _with_bid(requests: Batch, poi: int, factor: float) -> Batch:
    """The requests with an advertiser's bids multiplied, if they have lists of their own."""
    if "bid" not in requests:
        return requests
    own = np.asarray(requests["is_ad"]) & (np.asarray(requests["item"]) == poi)
    bid = np.asarray(requests["bid"])
    return dict(requests) | {"bid": np.where(own, np.float32(factor) * bid, bid)}


def landscape(
    seller: Seller, poi: int, requests: Batch, judge: Judge, factors: Sequence[float] = FACTORS
) -> Landscape:
    """Serves requests again at other bids of one advertiser.

    Args:
      seller: serves them.
      poi: the advertiser.
      requests: `[R]` of a log in which its ad is for sale, as a batch.
      judge: tells the click probabilities.
      factors: multiples of its bids, above 0.
    """
    count = len(requests["session"])
    offer = offer_in(requests, seller.books)
    rows = [seller.outcomes(poi, factor, requests, judge) for factor in factors]
    shown, clicks, spend, value = np.array(rows).T / count
    return Landscape(
        poi=poi,
        requests=count,
        factor=np.array(factors),
        bid=np.array(factors) * offer.bid[offer.poi == poi].mean(),
        impressions=shown,
        clicks=clicks,
        price=np.divide(spend, clicks, out=np.zeros(len(rows)), where=clicks > 0),
        surplus=value - spend,
    )
