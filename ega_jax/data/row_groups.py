"""The row groups of a table's files: what is read at a time, in any order."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.tables import Table


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """Some rows of one row group of a file."""

    path: Path
    index: int  # of the row group in its file.
    start: int  # first row, within the row group.
    stop: int  # one past the last.

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Reads some columns of these rows."""
        with pq.ParquetFile(self.path) as file:
            table = file.read_row_group(self.index, columns=list(columns))
        return table.slice(self.start, self.stop - self.start)


def row_groups_of(table: Table) -> tuple[RowGroup, ...]:
    """All rows of a table, in the order of its files."""
    groups = []
    for file in table.files:
        metadata = pq.read_metadata(file.path)
        sizes = (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        groups += [RowGroup(file.path, index, 0, size) for index, size in enumerate(sizes)]
    return tuple(groups)


def clipped(groups: Sequence[RowGroup], first: int, last: int) -> tuple[RowGroup, ...]:
    """The rows from `first` to before `last`, counted over whole row groups."""
    found, before = [], 0
    for group in groups:
        start, stop = max(first - before, 0), min(last - before, group.stop)
        if start < stop:
            found.append(dataclasses.replace(group, start=start, stop=stop))
        before += group.stop
    return tuple(found)
