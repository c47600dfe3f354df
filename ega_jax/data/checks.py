"""A stretch of rows of a Parquet file that is decoded and held to rules, vectorised."""

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.columns import as_lists, to_numpy
from ega_jax.data.ragged import Ragged
from ega_jax.data.tables import DataError, Table, TableFile, is_blank

_ROWS_AT_A_TIME = 16_384
_VALUES_AT_A_TIME = 2**22  # of the column with the longest lists, if rows are alike.


@dataclasses.dataclass(frozen=True)
class Part:
    """Some consecutive rows of a file. Every method raises `DataError` at the first bad row."""

    path: Path
    first_row: int  # row of the file that is row 0 here.
    table: pa.Table
    rows_before: int = 0  # rows of the table that stand in earlier files.

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

    def require_values(
        self, ok: np.ndarray, lists: Ragged, column: str, rule: str, quoted: bool = True
    ):
        """Holds if `ok` `[V]` is true for every value of `lists`; the first bad one is quoted."""
        if not ok.all():
            place = int(np.argmin(ok))
            row = int(np.searchsorted(lists.offsets, place, side="right")) - 1
            found = f", found {lists.values[place]}" if quoted else ""
            raise DataError(self.path, rule + found, column, self.first_row + row)

    def require_equal_lengths(self, lists: Ragged, column: str, others: Ragged, other_column: str):
        """Holds if both columns' lists have the same length in every row."""
        ok = lists.lengths == others.lengths
        rule = f"a list must be as long as that of '{other_column}'"
        self.require(ok, column, rule, lists.lengths)

    def numbers(self, column: str, dtype: type) -> np.ndarray:
        """`[rows]` a column of numbers or times, none of them null."""
        self._require_no_null(column)
        return to_numpy(self.table[column], dtype)

    def lists(self, column: str, dtype: type, null_is_empty: bool = False) -> Ragged:
        """A column of lists, without nulls in place of a value.

        Args:
          column: its name.
          dtype: that the values are cast to.
          null_is_empty: take a null for an empty list; else it is refused, unless the file has no
            value in any row of the column.
        """
        chunks = [as_lists(chunk) for chunk in self.table[column].chunks]
        if not null_is_empty and any(chunk.null_count for chunk in chunks):
            self._require_blank_or_no_null(column)
        present = [~chunk.flatten().is_null().to_numpy(zero_copy_only=False) for chunk in chunks]
        lists = Ragged.from_arrow(self.table[column], dtype)
        places = Ragged(np.concatenate([np.zeros(0, bool), *present]), lists.offsets)
        self.require_values(places.values, places, column, "a list may not hold nulls", False)
        return lists

    def flags(self, column: str) -> Ragged:
        """A column of lists of booleans, or of 0 and 1."""
        lists = self.lists(column, np.int64)
        ok = (lists.values == 0) | (lists.values == 1)
        self.require_values(ok, lists, column, "flags must be true or false, 1 or 0")
        return dataclasses.replace(lists, values=lists.values.astype(bool))

    def ids(self, column: str, bound: int, of_what: str) -> Ragged:
        """A column of lists of row numbers below `bound`."""
        lists = self.lists(column, np.int64)
        ok = (lists.values >= 0) & (lists.values < bound)
        self.require_values(ok, lists, column, f"{of_what} ids must be in 0..{bound - 1}")
        return lists

    def require_row_numbers(self, column: str):
        """Holds if an id column counts the rows of the table from 0."""
        ids = self.numbers(column, np.int64)
        expected = self.rows_before + self.rows
        self.require(ids == expected, column, "ids must equal the row number", ids)

    def flag(self, column: str) -> np.ndarray:
        """`[rows]` bool a column of booleans, or of 0 and 1."""
        values = self.numbers(column, np.int64)
        ok = (values == 0) | (values == 1)
        self.require(ok, column, "a flag must be true or false, 1 or 0", values)
        return values.astype(bool)

    def embeddings(
        self, column: str, width: int | None, noun: tuple[str, str] = ("an embedding", "embeddings")
    ) -> np.ndarray:
        """`[rows, E]` float32 a column of lists of one length, without a NaN, infinity or null.

        Args:
          column: its name.
          width: E, that of the rows before; none if these rows are the first.
          noun: what errors call one of the lists, and several.
        """
        self._require_no_null(column)
        lists = Ragged.from_arrow(self.table[column], np.float32)
        width = width or int(lists.lengths[0])
        filled = np.full(len(lists.lengths), width > 0)
        self.require(filled, column, f"{noun[0]} must have at least one value")
        rule = f"{noun[1]} must have one length, that of the first row, {width}"
        self.require(lists.lengths == width, column, rule, lists.lengths)
        matrix = lists.values.reshape(-1, width)
        ok = np.all(np.isfinite(matrix), axis=1)
        self.require(ok, column, "features must be finite (no NaN, infinity or null)")
        return matrix

    def known(self, column: str) -> np.ndarray:
        """`[rows]` whether a row has a value."""
        return self.table[column].is_valid().to_numpy()

    def _require_no_null(self, column: str):
        if self.table[column].null_count:
            self.require(self.known(column), column, "nulls are not allowed")

    def _require_blank_or_no_null(self, column: str):
        with pq.ParquetFile(self.path) as file:
            blank = is_blank(file, column)
        if not blank:
            self._require_no_null(column)


def parts(table: Table, columns: list[str]) -> Iterator[Part]:
    """Reads a table from its first row to its last, never much of it at a time.

    Raises:
      DataError: a file cannot be read.
    """
    rows_before = 0
    for file in table.files:
        yield from _parts_of_file(file, rows_before, columns)
        rows_before += file.num_rows


def _parts_of_file(file: TableFile, rows_before: int, columns: list[str]) -> Iterator[Part]:
    row = 0
    try:
        with pq.ParquetFile(file.path) as opened:
            size = _rows_at_a_time(opened.metadata, columns)
            for batch in opened.iter_batches(batch_size=size, columns=columns):
                yield Part(file.path, row, pa.Table.from_batches([batch]), rows_before)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(file.path, f"unreadable from row {row} on ({error})") from error


def _rows_at_a_time(metadata: pq.FileMetaData, columns: list[str]) -> int:
    """How many rows are read together: fewer where lists are long."""
    values = collections.Counter()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            values[chunk.path_in_schema.partition(".")[0]] += chunk.num_values
    longest = max((values[column] for column in columns), default=0)
    return min(_ROWS_AT_A_TIME, max(_VALUES_AT_A_TIME * metadata.num_rows // max(longest, 1), 1))
