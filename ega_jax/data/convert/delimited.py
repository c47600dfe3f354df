"""Records of delimited files: csv with or without a header, tabs, `::` and `|`."""

import collections
import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import TextIO

from ega_jax.data.convert.json_records import Malformed, Row
from ega_jax.data.convert.source import Columns, Layout

_WITH_HEADER = (",", "\t", ";", "::")  # Separators of files with a header.
_QUOTING = (",", ";")  # Separators of files whose cells may stand in quotes.
_LONGEST = 500  # Lines that a quoted cell may have; beyond it a quote was left open.


class UnknownColumnsError(ValueError):
    """The columns of a file are not among those that can be read."""


@dataclasses.dataclass(frozen=True)
class Table:
    """How the lines of a delimited file divide into named cells."""

    separator: str
    names: tuple[str, ...]
    has_header: bool

    @classmethod
    def detect(cls, layout: Layout, head: Sequence[str]) -> "Table":
        """Finds the columns from a file's first lines.

        The first line is a header if it names the required fields, in any order, whatever their
        case, with or without underscores. Else the columns are those that fit most lines.

        Raises:
          UnknownColumnsError: no columns fit, or the first line is a header of other names.
        """
        for separator in _WITH_HEADER:
            names = _header(layout, _split(head[0], separator))
            if names:
                return cls(separator, names, True)
        fitting = [(_fitting(head, columns), columns) for columns in layout.columns]
        most, best = max(fitting, key=lambda pair: pair[0], default=(0, None))
        if best is None or not most or _is_words(_split(head[0], best.separator)):
            raise UnknownColumnsError(f"unknown columns in the first line {head[0][:200]!r}")
        return cls(best.separator, best.names, False)

    def rows(self, file: TextIO) -> Iterator[Row]:
        """The records, each with the number of its first line."""
        rows = _rows(file, self.separator)
        if self.has_header:
            next(rows)
        for number, cells in rows:
            if isinstance(cells, Malformed):
                yield number, cells
            elif len(cells) != len(self.names):
                expected = f"expected {len(self.names)} columns ({', '.join(self.names)})"
                yield number, Malformed(f"{expected}, found {len(cells)}")
            else:
                yield number, dict(zip(self.names, cells, strict=True))


def _header(layout: Layout, cells: list[str]) -> tuple[str, ...] | None:
    """The columns of a header by the layout's names, or none if it lacks a required one.

    One cell is no header: with a separator that the file does not use, a line is one cell.
    """
    known = [*(name for names in layout.required for name in names), *layout.optional]
    name_of = {_plain(name): name for name in reversed(known)}
    found = tuple(name_of.get(_plain(cell), cell.strip()) for cell in cells)
    complete = all(any(name in found for name in names) for names in layout.required)
    return found if complete and len(cells) > 1 else None


def _plain(name: str) -> str:
    """A column's name without case, marks and the type that some tools append (`id:token`)."""
    return re.sub("[^a-z0-9]", "", name.partition(":")[0].lower())


def _fitting(head: Sequence[str], columns: Columns) -> int:
    """How many lines can be rows of these columns."""
    split = [_split(line, columns.separator) for line in head]
    return sum(len(cells) == len(columns.names) and columns.fits(cells) for cells in split)


def _is_words(cells: Sequence[str]) -> bool:
    """Whether several cells hold no number at all, as in a header."""
    numbers = re.compile(r"\s*[-+]?[0-9.]+(e[-+]?[0-9]+)?\s*", re.IGNORECASE)
    return len(cells) > 2 and not any(numbers.fullmatch(cell) for cell in cells)


def _split(line: str, separator: str) -> list[str]:
    """The cells of one line; one that opens a quote and does not close it is split as it is."""
    if '"' in line and separator in _QUOTING:
        try:
            return next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error:
            pass
    return line.split(separator)


def _rows(file: TextIO, separator: str) -> Iterator[tuple[int, list[str] | Malformed]]:
    """Rows of cells; in csv, a quoted cell may hold separators and line ends."""
    lines = enumerate(file, start=1)
    ahead: collections.deque[tuple[int, str]] = collections.deque()
    while line := ahead.popleft() if ahead else next(lines, None):
        number, text = line
        if not text.strip():
            continue
        if '"' in text and separator in _QUOTING:
            yield number, _quoted(text, separator, lines, ahead)
        else:
            yield number, text.rstrip("\r\n").split(separator)


def _quoted(
    text: str,
    separator: str,
    lines: Iterator[tuple[int, str]],
    ahead: collections.deque[tuple[int, str]],
) -> list[str] | Malformed:
    """The row that starts with a line, which a quoted cell may continue on later lines.

    Lines that were read in vain stay in `ahead`: a quote that is never closed costs its own line
    alone, not the rest of the file.
    """
    for used in range(_LONGEST):
        try:
            cells = next(csv.reader(io.StringIO(text, ""), delimiter=separator, strict=True))
        except csv.Error as error:
            if "unexpected end" not in str(error):
                return Malformed(f"not csv ({error})")
            if used == len(ahead) and (line := next(lines, None)):
                ahead.append(line)
            if used == len(ahead):
                break
            text += ahead[used][1]
        else:
            for _ in range(used):
                ahead.popleft()
            return cells
    return Malformed("not csv (a quote is opened and not closed)")
