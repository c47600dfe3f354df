"""The rules for `sequences.parquet`: what users did, in time order."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ega_jax.data.checks import Part, parts
from ega_jax.data.tables import DataError, Table, open_table

SHORTEST = 3  # Items of a sequence that is evaluated.


@dataclasses.dataclass(frozen=True)
class SequenceTotals:
    """Counts over all sequences."""

    rows: int = 0
    actions: int = 0
    longest: int = 0
    trainable: int = 0  # sequences with two training items, a history and a target.

    def add(self, lengths: np.ndarray) -> "SequenceTotals":
        """Counts some more sequences of these lengths `[rows]`."""
        return SequenceTotals(
            self.rows + len(lengths),
            self.actions + int(lengths.sum()),
            max(self.longest, int(lengths.max())),
            self.trainable + int((training_lengths(lengths) >= 2).sum()),
        )


def open_sequences(folder: Path) -> Table:
    """Finds `sequences.parquet`."""
    required = {"user_id": "an integer", "items": "a list of integers"}
    optional = {"timestamps": "a list of integers or timestamps"}
    return open_table(folder / "sequences.parquet", required, optional)


def check_sequences(
    table: Table, num_items: int, progress: Callable[[int, int], None]
) -> SequenceTotals:
    """Checks every sequence.

    Args:
      table: the sequences.
      num_items: P; item ids must be below it.
      progress: called with (rows checked, rows in all).

    Raises:
      DataError: at the first row that breaks a rule.
    """
    if not table.num_rows:
        raise DataError(table.path, "the file has no rows")
    columns = ["user_id", "items", *(["timestamps"] if table.has("timestamps") else [])]
    totals = SequenceTotals()
    for part in parts(table, columns):
        totals = totals.add(_check_part(part, num_items))
        progress(totals.rows, table.num_rows)
    return totals


def require_examples(table: Table, totals: SequenceTotals):
    """Refuses sequences that are all too short to train on, or to evaluate.

    Raises:
      DataError: names the column and the rule.
    """
    if totals.longest < SHORTEST:
        rule = f"no sequence has {SHORTEST} items, so none can be evaluated"
        raise DataError(table.path, f"{rule}; the longest has {totals.longest}", "items")
    if not totals.trainable:
        rule = "no sequence has two items to train on once the last two are held out"
        raise DataError(table.path, rule, "items")


def training_lengths(lengths: np.ndarray) -> np.ndarray:
    """`[rows]` how many items of sequences of these lengths `[rows]` are for training."""
    return np.where(lengths >= SHORTEST, lengths - 2, lengths)


def _check_part(part: Part, num_items: int) -> np.ndarray:
    """`[rows]` lengths of some valid sequences."""
    part.numbers("user_id", np.int64)
    items = part.ids("items", num_items, "item")
    part.require(items.lengths > 0, "items", "a sequence may not be empty")
    if "timestamps" in part.table.column_names:
        times = part.lists("timestamps", np.int64, null_is_empty=True)
        ok = ~part.known("timestamps") | (times.lengths == items.lengths)
        rule = "a list must be as long as that of 'items'"
        part.require(ok, "timestamps", rule, times.lengths)
        row = times.row_of_value()
        ok = np.ones(len(row), bool)
        ok[1:] = (times.values[1:] >= times.values[:-1]) | (row[1:] > row[:-1])
        part.require_values(ok, times, "timestamps", "a sequence must be in time order")
    return items.lengths
