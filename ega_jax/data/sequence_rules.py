"""The rules for `sequences.parquet`: what users did, in time order."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ega_jax.data.checks import Part, parts
from ega_jax.data.tables import DataError, open_table


@dataclasses.dataclass(frozen=True)
class SequenceTotals:
    """Counts over all sequences."""

    rows: int = 0
    actions: int = 0
    longest: int = 0


def check_sequences(
    path: Path, num_items: int, progress: Callable[[int, int], None]
) -> SequenceTotals:
    """Checks every sequence.

    Args:
      path: the file.
      num_items: P; item ids must be below it.
      progress: called with (rows checked, rows in all).

    Raises:
      DataError: at the first row that breaks a rule.
    """
    required = {"user_id": "integer", "items": "list of integers"}
    table = open_table(path, required, {"timestamps": "list of integers"})
    columns = ["user_id", "items"]
    columns += [name for name in ("timestamps",) if name in table.schema_arrow.names]
    rows = table.metadata.num_rows
    if not rows:
        raise DataError(path, "the file has no rows")
    actions = longest = 0
    for part in parts(path, table, columns):
        lengths = _check_part(part, num_items)
        actions, longest = actions + int(lengths.sum()), max(longest, int(lengths.max()))
        progress(part.first_row + len(lengths), rows)
    return SequenceTotals(rows, actions, longest)


def _check_part(part: Part, num_items: int) -> np.ndarray:
    """`[rows]` lengths of some valid sequences."""
    part.numbers("user_id", np.int64)
    items = part.ids("items", num_items, "item")
    part.require(items.lengths > 0, "items", "a sequence may not be empty")
    if "timestamps" in part.table.column_names:
        times = part.lists("timestamps", np.int64)
        part.require_equal_lengths(times, "timestamps", items, "items")
        row = times.row_of_value()
        ok = np.ones(len(row), bool)
        ok[1:] = (times.values[1:] >= times.values[:-1]) | (row[1:] > row[:-1])
        part.require_values(ok, times, "timestamps", "a sequence must be in time order")
    return items.lengths
