"""The ad books of a log, in memory: sessions refer to them by number."""

import dataclasses
from pathlib import Path

import numpy as np

from ega_jax.data.book_rules import open_books
from ega_jax.data.reading import read_lists, read_numbers


@dataclasses.dataclass(frozen=True)
class Books:
    """All ad books of a log, one after the other; a book's number is its place here.

    Book `b` has the ads `book_start[b]` to `book_start[b + 1]`, as they are listed.
    """

    poi: np.ndarray  # [n] int32 POI of each ad.
    bid: np.ndarray  # [n] float32 its bid, currency per click.
    book_start: np.ndarray  # [books + 1] int64 first ad of each book, and the number of ads.
    book_id: np.ndarray  # [books] int64 ids by which sessions name them, in the order of the files.

    @property
    def number(self) -> np.ndarray:
        """`[n]` int64 the number of each ad's book."""
        return np.repeat(np.arange(len(self.book_id)), np.diff(self.book_start))

    def rows(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """POIs, -1 after the last, and bids of books `[D]` by their numbers, both `[D, A]`."""
        start, stop = self.book_start[number], self.book_start[np.asarray(number) + 1]
        place = start[:, None] + np.arange(int(np.diff(self.book_start).max()))
        inside = place < stop[:, None]
        place = np.minimum(place, len(self.poi) - 1)
        return np.where(inside, self.poi[place], -1), np.where(inside, self.bid[place], 0.0)

    def past_bids(self, first_use: np.ndarray) -> np.ndarray:
        """What each ad of a book bid before: the mean of its POI's bids in earlier books.

        An ad without an earlier bid gets the mean of all bids of earlier books, or 0 in the first
        book. The bids of a book itself have no effect on its result.

        Args:
          first_use: `[books]` rising with the time at which a book was first used.

        Returns:
          `[n]` float32, currency per click.
        """
        found = np.zeros(len(self.poi), np.float32)
        total, count = (np.zeros(self.poi.max(initial=-1) + 1) for _ in range(2))
        total_of_all, count_of_all = 0.0, 0
        for book in np.argsort(first_use, kind="stable"):
            ads = slice(self.book_start[book], self.book_start[book + 1])
            poi, bid = self.poi[ads], self.bid[ads]
            own = total[poi] / np.maximum(count[poi], 1)
            found[ads] = np.where(count[poi] > 0, own, total_of_all / max(count_of_all, 1))
            total[poi] += bid  # A book has a POI at most once.
            count[poi] += 1
            total_of_all += bid.sum(dtype=float)
            count_of_all += len(bid)
        return found

    def competing_bids(self, past_bids: np.ndarray, rank: int) -> np.ndarray:
        """The `rank`-th highest past bid of the other ads of a book, for each ad.

        Args:
          past_bids: `[n]`, from `past_bids`.
          rank: at least 1.

        Returns:
          `[n]` float32, currency per click; 0 in books with fewer than `rank` other ads.
        """
        start, size = self.book_start[:-1], np.diff(self.book_start)
        book = self.number
        falling = np.append(past_bids[np.lexsort((-past_bids, book))], 0.0)
        nth = lambda k: np.where(size > k, falling[np.minimum(start + k, len(past_bids))], 0.0)
        last, next_one = (nth(k)[book] for k in (rank - 1, rank))
        return np.where(past_bids >= last, next_one, last).astype(np.float32)

    @classmethod
    def load(cls, folder: Path) -> "Books":
        """Reads `books/` of a folder that `schema.validate` found valid."""
        table = open_books(folder)
        ads = read_lists(table, "ad_poi", np.int32)
        return cls(
            poi=ads.values,
            bid=read_lists(table, "ad_bid", np.float32).values,
            book_start=ads.offsets,
            book_id=read_numbers(table, "book_id", np.int64),
        )
