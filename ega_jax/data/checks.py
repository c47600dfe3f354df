"""A stretch of rows of a Parquet file that is decoded and held to rules, vectorised."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.ragged import Ragged
from ega_jax.data.tables import DataError, to_matrix, to_numpy

_ROWS_AT_A_TIME = 16_384


@dataclasses.dataclass(frozen=True)
class Part:
    """Some consecutive rows of a file. Every method raises `DataError` at the first bad row."""

    path: Path
    first_row: int  # row of the file that is row 0 here.
    table: pa.Table

    @property
    def rows(self) -> np.ndarray:
        """`[rows]` their row numbers in the file."""
        return self.first_row + np.arange(self.table.num_rows)

    def require(self, ok: np.ndarray, column: str, rule: str, found: Any = None):
        """Holds if `ok` `[rows]` is true everywhere; `found` `[rows]` is quoted if not."""
        if not ok.all():
            row = int(np.argmin(ok))
            quoted = "" if found is None else f", found {found[row]}"
            raise DataError(self.path, rule + quoted, column, self.first_row + row)

    def require_values(self, ok: np.ndarray, lists: Ragged, column: str, rule: str):
        """Holds if `ok` `[V]` is true for every value of `lists`."""
        if not ok.all():
            place = int(np.argmin(ok))
            row = int(np.searchsorted(lists.offsets, place, side="right")) - 1
            rule = f"{rule}, found {lists.values[place]}"
            raise DataError(self.path, rule, column, self.first_row + row)

    def require_equal_lengths(self, lists: Ragged, column: str, others: Ragged, other_column: str):
        """Holds if both columns' lists have the same length in every row."""
        ok = lists.lengths == others.lengths
        rule = f"a list must be as long as that of '{other_column}'"
        self.require(ok, column, rule, lists.lengths)

    def numbers(self, column: str, dtype: type) -> np.ndarray:
        """`[rows]` a column of numbers, none of them null."""
        self._require_no_null(column)
        return to_numpy(self.table[column], dtype)

    def lists(self, column: str, dtype: type) -> Ragged:
        """A column of lists, without nulls in place of a list or of a value."""
        self._require_no_null(column)
        if any(chunk.flatten().null_count for chunk in self.table[column].chunks):
            ok = np.array([None not in values for values in self.table[column].to_pylist()])
            self.require(ok, column, "a list may not hold nulls")
        return Ragged.from_arrow(self.table[column], dtype)

    def ids(self, column: str, bound: int, of_what: str) -> Ragged:
        """A column of lists of row numbers below `bound`."""
        lists = self.lists(column, np.int64)
        ok = (lists.values >= 0) & (lists.values < bound)
        self.require_values(ok, lists, column, f"{of_what} ids must be in 0..{bound - 1}")
        return lists

    def require_row_numbers(self, column: str):
        """Holds if an id column counts the rows from 0."""
        ids = self.numbers(column, np.int64)
        self.require(ids == self.rows, column, "ids must equal the row number", ids)

    def require_finite(self, column: str):
        """Holds if no embedding has a NaN, an infinity or a null."""
        self._require_no_null(column)
        ok = np.all(np.isfinite(to_matrix(self.table[column])), axis=1)
        self.require(ok, column, "features must be finite (no NaN, infinity or null)")

    def _require_no_null(self, column: str):
        if self.table[column].null_count:
            self.require(self.table[column].is_valid().to_numpy(), column, "nulls are not allowed")


def parts(path: Path, table: pq.ParquetFile, columns: list[str]) -> Iterator[Part]:
    """Reads a file from its first row to its last, never much of it at a time."""
    first_row = 0
    try:
        for batch in table.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns):
            yield Part(path, first_row, pa.Table.from_batches([batch]))
            first_row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(path, f"unreadable from row {first_row} on ({error})") from error
