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

    def rows(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """POIs, -1 after the last, and bids of books `[D]` by their numbers, both `[D, A]`."""
        start, stop = self.book_start[number], self.book_start[np.asarray(number) + 1]
        place = start[:, None] + np.arange(int(np.diff(self.book_start).max()))
        inside = place < stop[:, None]
        place = np.minimum(place, len(self.poi) - 1)
        return np.where(inside, self.poi[place], -1), np.where(inside, self.bid[place], 0.0)

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
