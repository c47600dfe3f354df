"""Reading what users download: lines of text, plain or gzipped, some of them malformed."""

import dataclasses
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ega_jax.data.tables import DataError

Record = TypeVar("Record")

_SHOWN = 5
_FAULTS = (ValueError, SyntaxError, LookupError, TypeError, OverflowError, RecursionError)


@dataclasses.dataclass
class LineCounts:
    """How many lines were read, how many were malformed, and where the first of these are."""

    read: int = 0
    malformed: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    def add_malformed(self, path: Path, number: int, reason: str):
        """Counts a line that could not be used; `number` counts from 1."""
        self.malformed += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(f"{path}:{number}: {reason}")

    def __str__(self) -> str:
        more = ["..."] if self.malformed > len(self.examples) else []
        head = f"{self.read} lines read, {self.malformed} malformed and left out"
        return "\n  ".join([head, *self.examples, *more])


def records(
    path: Path, parse: Callable[[str], Record | None], encoding: str, counts: LineCounts
) -> Iterator[Record]:
    """What `parse` makes of each line; it returns none for lines to skip, and raises for bad ones.

    Raises:
      DataError: the file does not exist or cannot be read.
    """
    if not path.is_file():
        raise DataError(path, "the file does not exist")
    try:
        with _open(path, encoding) as file:
            for number, line in enumerate(file, start=1):
                counts.read += 1
                record = _parse(path, number, line, parse, counts)
                if record is not None:
                    yield record
    except (OSError, EOFError) as error:
        raise DataError(path, f"cannot be read ({error})") from error


def _open(path: Path, encoding: str):
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding=encoding, errors="replace")


def _parse(
    path: Path,
    number: int,
    line: str,
    parse: Callable[[str], Record | None],
    counts: LineCounts,
) -> Record | None:
    if not line.strip():
        return None
    try:
        return parse(line.strip("\r\n"))
    except _FAULTS as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        counts.add_malformed(path, number, reason)
        return None
