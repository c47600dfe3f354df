"""The rules for `books/` of an ad log: one row per book, the ads that may be shown and their bids.

A log in which many requests are offered the same ads lists them once. Its sessions then hold a
`book_id` in place of `ad_poi` and `ad_bid`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from ega_jax.amounts import LARGEST, is_amount
from ega_jax.data.checks import Part, parts
from ega_jax.data.membership import is_first, is_in_sorted
from ega_jax.data.ragged import Ragged
from ega_jax.data.tables import DataError, Table, open_table

ADS = {"ad_poi": "a list of integers", "ad_bid": "a list of floats"}
BOOK_ID = {"book_id": "an integer"}


@dataclasses.dataclass(frozen=True)
class BookIndex:
    """Valid books, to look up ads in; books are numbered in the order in which they are read."""

    book_id: np.ndarray  # [books] int64, distinct.
    num_ads: np.ndarray  # [books] int64.
    num_pois: int  # P.
    keys: np.ndarray  # [n] int64, ascending; number of the book times P plus POI, of every ad.

    def hold(self, book: np.ndarray, poi: np.ndarray) -> np.ndarray:
        """`[V]` whether each book, a number `[V]`, has an ad of the POI `[V]` in [0, P)."""
        return is_in_sorted(book.astype(np.int64) * self.num_pois + poi, self.keys)


def open_books(folder: Path) -> Table:
    """Finds the files below `books/`, in the order of their names.

    Raises:
      DataError: there are none, or a column is missing or of another type.
    """
    path = folder / "books"
    if not path.exists():
        raise DataError(path, "the folder does not exist, but sessions name a 'book_id'")
    return open_table(path, BOOK_ID | ADS, {})


def check_books(table: Table, num_pois: int) -> BookIndex:
    """Checks every book.

    Args:
      table: the books.
      num_pois: P.

    Raises:
      DataError: at the first row that breaks a rule.
    """
    if not table.num_rows:
        raise DataError(table.path, "there are no books")
    book_id = _check_ids(table)
    num_ads, keys = [], []
    for part in parts(table, list(ADS)):
        ads = check_ads(part, num_pois)
        book = part.rows_before + part.rows[ads.row_of_value()]
        num_ads.append(ads.lengths)
        keys.append(np.sort(book * num_pois + ads.values))
    return BookIndex(book_id, np.concatenate(num_ads), num_pois, np.concatenate(keys))


def check_ads(part: Part, num_pois: int) -> Ragged:
    """Checks the ads of some books, or those that sessions hold themselves; returns their POIs."""
    ads = part.ids("ad_poi", num_pois, "POI")
    part.require_values(is_first(ads, num_pois), ads, "ad_poi", "a candidate must come once")
    bids = part.lists("ad_bid", np.float64)
    part.require_equal_lengths(bids, "ad_bid", ads, "ad_poi")
    rule = f"bids must be from 0 to {LARGEST:g}"
    part.require_values(is_amount(bids.values), bids, "ad_bid", rule)
    return ads


def require_ads(table: Table, books: BookIndex):
    """Refuses books in which nothing is for sale.

    Raises:
      DataError: names the column and the rule.
    """
    if not len(books.keys):
        raise DataError(table.path, "no book has an ad", "ad_poi")


def book_numbers(book_id: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Looks up books by their ids.

    Args:
      book_id: `[books]` int64, distinct, in any order; at least one.
      wanted: `[rows]` int64 ids.

    Returns:
      `[rows]` int32 places in `book_id`; -1 where no book has the id.
    """
    order = np.argsort(book_id)
    place = np.searchsorted(book_id, wanted, sorter=order)
    found = order[np.minimum(place, len(order) - 1)]
    return np.where(book_id[found] == wanted, found, -1).astype(np.int32)


def _check_ids(table: Table) -> np.ndarray:
    """`[books]` int64 the ids of all books."""
    known = np.zeros(0, np.int64)
    for part in parts(table, ["book_id"]):
        ids = part.numbers("book_id", np.int64)
        part.require(ids >= 0, "book_id", "book ids must be at least 0", ids)
        is_new = np.zeros(len(ids), bool)
        is_new[np.unique(ids, return_index=True)[1]] = True
        is_new &= ~np.isin(ids, known)
        part.require(is_new, "book_id", "two books may not have the same id", ids)
        known = np.concatenate([known, ids])
    return known
