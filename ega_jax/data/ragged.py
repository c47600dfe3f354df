"""Lists of unequal length, held as one flat array and the offsets of its rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ega_jax.data.columns import as_lists, values_of


@dataclasses.dataclass(frozen=True)
class Ragged:
    """A column of lists; row `r` is `values[offsets[r]:offsets[r + 1]]`."""

    values: np.ndarray  # [V] all rows, one after the other.
    offsets: np.ndarray  # [rows + 1] int64, ascending, from 0 to V.

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray, dtype: Any) -> "Ragged":
        """Decodes a list column of any layout; a null is an empty list.

        Args:
          column: its values are not null.
          dtype: that the values are cast to.
        """
        chunks = [cls._of_chunk(as_lists(chunk), dtype) for chunk in column.chunks]
        if not chunks:
            return cls(np.zeros(0, dtype), np.zeros(1, np.int64))
        return chunks[0] if len(chunks) == 1 else cls.joined(chunks)

    @classmethod
    def _of_chunk(cls, lists: pa.ListArray | pa.LargeListArray, dtype: Any) -> "Ragged":
        if lists.null_count:  # A null may span values, which `flatten` leaves out.
            lengths = lists.value_lengths().fill_null(0).to_numpy()
            offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            return cls(values_of(lists.flatten(), dtype), offsets)
        offsets = lists.offsets.to_numpy().astype(np.int64)
        flat = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
        return cls(values_of(flat, dtype), offsets - offsets[0])

    @classmethod
    def joined(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """Appends the rows of several columns."""
        lengths = np.concatenate([part.lengths for part in parts])
        values = np.concatenate([part.values for part in parts])
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]))

    @property
    def num_rows(self) -> int:
        """Number of lists."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """`[rows]` int64 length of each list."""
        return np.diff(self.offsets)

    def row_of_value(self) -> np.ndarray:
        """`[V]` int64 row that each value stands in."""
        return np.repeat(np.arange(self.num_rows), self.lengths)

    def gather(self, rows: np.ndarray, positions: np.ndarray, fill: Any) -> np.ndarray:
        """Picks values by row and position; a position outside its list gives `fill`.

        Args:
          rows: `[B]` int, the rows to read.
          positions: `[B, L]` int, where in its row; may be negative or too large.
          fill: what an empty place holds.

        Returns:
          `[B, L]` of the values' dtype.
        """
        start = self.offsets[rows][:, None]
        where = (positions >= 0) & (positions < self.offsets[rows + 1][:, None] - start)
        result = np.full(positions.shape, fill, self.values.dtype)
        result[where] = self.values[(start + positions)[where]]
        return result

    def first(self, rows: np.ndarray, width: int, fill: Any) -> np.ndarray:
        """`[B, width]` the first values of each row, padded on the right."""
        positions = np.broadcast_to(np.arange(width), (len(rows), width))
        return self.gather(rows, positions, fill)

    def last(self, rows: np.ndarray, width: int, fill: Any) -> np.ndarray:
        """`[B, width]` the last values of each row, padded on the left."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        return self.gather(rows, lengths[:, None] - width + np.arange(width), fill)
