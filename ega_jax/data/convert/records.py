"""Records of a raw file, parsed; those that are malformed are counted and named."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from ega_jax.data.convert.delimited import Table, UnknownColumnsError
from ega_jax.data.convert.json_records import BrokenJSONError, Malformed, Row, is_json, json_rows
from ega_jax.data.convert.raw_files import RawFile
from ega_jax.data.convert.source import Layout
from ega_jax.data.tables import DataError

Record = TypeVar("Record")

_SHOWN = 5
_HEAD = 100  # Lines from which the kind of a file is told.


@dataclasses.dataclass
class RecordCounts:
    """How many records were read, how many were malformed, and where the first of these are."""

    read: int = 0
    malformed: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    def add_malformed(self, path: Path, line: int, reason: str):
        """Counts a record that cannot be used; `line` counts from 1."""
        self.malformed += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(f"{path}:{line}: {reason}")

    def __str__(self) -> str:
        more = ["..."] if self.malformed > len(self.examples) else []
        head = f"{self.read} records read, {self.malformed} malformed and left out"
        return "\n  ".join([head, *self.examples, *more])


def records(file: RawFile, layout: Layout[Record], counts: RecordCounts) -> Iterator[Record]:
    """Reads a file of JSON or of delimited text; which of them, its first lines tell.

    Args:
      file: the file.
      layout: what its records are.
      counts: is updated on the way.

    Yields:
      The records that are not malformed, in the order of the file.

    Raises:
      DataError: the file cannot be read, is of another layout, or no record could be used.
    """
    try:
        for line, row in _rows(file, layout):
            counts.read += 1
            try:
                if isinstance(row, Malformed):
                    raise ValueError(row.reason)
                record = layout.parse(row)
            except ValueError as error:
                counts.add_malformed(file.path, line, str(error))
                continue
            yield record
    except (BrokenJSONError, UnknownColumnsError) as error:
        raise DataError(file.path, f"{error}; expected {layout.expected}") from error
    if counts.read == counts.malformed:
        first = f"; first {counts.examples[0]}" if counts.examples else ""
        found = f"none of its {counts.read} records can be used{first}"
        raise DataError(file.path, f"{found}; expected {layout.expected}")


def _rows(file: RawFile, layout: Layout) -> Iterator[Row]:
    head = file.head(_HEAD)
    with file.open() as text:
        if is_json(head):
            yield from json_rows(text, head)
        else:
            yield from Table.detect(layout, head).rows(text)
