"""The content of a report, as plain data that the template shows."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclasses.dataclass(frozen=True)
class Warned:
    """Something that a reader must not miss; it is also listed at the top of the report."""

    kind: ClassVar[str] = "warning"
    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; cells are text, numbers, `Ratio`s (with their intervals) or None."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure as inline SVG."""

    title: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Charts:
    """Figures side by side, as many as fit."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    kind: ClassVar[str] = "code"
    text: str


@dataclasses.dataclass(frozen=True)
class Folded:
    """Blocks that a reader opens."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Any]


Block = Text | Warned | Table | Charts | Code | Folded


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report, with a heading."""

    title: str
    blocks: Sequence[Block]

    @property
    def warnings(self) -> list[str]:
        """The texts of its warnings."""
        return [block.text for block in self.blocks if isinstance(block, Warned)]


@dataclasses.dataclass(frozen=True)
class Part:
    """The sections of one workdir, or of the comparison of several."""

    title: str
    sections: Sequence[Section]


@dataclasses.dataclass(frozen=True)
class KeyFigure:
    """One of the key figures at the top."""

    label: str
    value: Any
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    subtitle: str
    figures: Sequence[KeyFigure]
    parts: Sequence[Part]
