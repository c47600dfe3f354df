"""What was for sale in an ad log, in figures: lists of the sessions themselves, or ad books."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ega_jax.data.book_rules import book_numbers, open_books
from ega_jax.data.checks import Part, parts
from ega_jax.data.counts import Histogram, Sample, describe_values


@dataclasses.dataclass(frozen=True)
class OwnAds:
    """Counts over sessions that hold their own ads."""

    columns: ClassVar[tuple[str, ...]] = (
        "ad_poi",
        "ad_bid",
        "organic_poi",
    )  # of sessions, that are read.

    bids: Sample = dataclasses.field(default_factory=Sample)
    ads: Histogram = dataclasses.field(default_factory=Histogram)  # per request.
    candidates: Histogram = dataclasses.field(default_factory=Histogram)  # per request.

    def add(self, part: Part) -> "OwnAds":
        """Counts some more sessions."""
        num_ads, num_organic = (
            part.lists(name, np.int64).lengths for name in ("ad_poi", "organic_poi")
        )
        return OwnAds(
            bids=self.bids.add(part.lists("ad_bid", np.float64).values),
            ads=self.ads.add(num_ads),
            candidates=self.candidates.add(num_ads + num_organic),
        )

    def facts(self) -> dict[str, Any]:
        """The figures, by name."""
        return {
            "candidates per request": self.candidates.describe(),
            "ads per request": self.ads.describe(),
        }

    def warnings(self) -> list[str]:
        """Returns no warning of its own: `session_warnings` has those about bids and slates."""
        return []


@dataclasses.dataclass(frozen=True)
class BookAds:
    """Counts over ad books, and over the sessions that name them."""

    columns: ClassVar[tuple[str, ...]] = ("book_id", "organic_poi")  # As in `OwnAds`.

    book_id: np.ndarray  # [books] int64.
    num_ads: np.ndarray  # [books] int64.
    num_requests: np.ndarray  # [books] int64 sessions that name each book.
    bids: Sample  # of all books, each bid once.
    organic: Histogram = dataclasses.field(default_factory=Histogram)  # items per request.

    @classmethod
    def of(cls, folder: Path) -> "BookAds":
        """Counts the books of a valid log, before any session."""
        ids, num_ads, bids = [], [], Sample()
        for part in parts(open_books(folder), ["book_id", "ad_bid"]):
            lists = part.lists("ad_bid", np.float64)
            ids.append(part.numbers("book_id", np.int64))
            num_ads.append(lists.lengths)
            bids = bids.add(lists.values)
        joined = np.concatenate(ids)
        return cls(joined, np.concatenate(num_ads), np.zeros_like(joined), bids)

    def add(self, part: Part) -> "BookAds":
        """Counts some more sessions."""
        book = book_numbers(self.book_id, part.numbers("book_id", np.int64))
        named = np.bincount(book, minlength=len(self.book_id))
        return dataclasses.replace(
            self,
            num_requests=self.num_requests + named,
            organic=self.organic.add(part.lists("organic_poi", np.int64).lengths),
        )

    def facts(self) -> dict[str, Any]:
        """The figures, by name."""
        return {
            "books": len(self.book_id),
            "ads per book": describe_values(self.num_ads),
            "requests per book": describe_values(self.num_requests),
            "organic items per request": self.organic.describe(),
        }

    def warnings(self) -> list[str]:
        """Warns of books that break no rule but look wrong."""
        total = len(self.book_id)
        checks = (
            (self.num_requests == 0, "books are named by no session"),
            (self.num_ads == 0, "books have no ad"),
        )
        counted = ((int(where.sum()), words) for where, words in checks)
        return [f"{count} of {total} {words}" for count, words in counted if count]
