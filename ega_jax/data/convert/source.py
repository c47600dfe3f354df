"""What the converter knows of a public dataset: the records of its two files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

Record = TypeVar("Record", covariant=True)


@dataclasses.dataclass(frozen=True)
class Action:
    """A user's review or rating of an item."""

    user: str
    item: str
    time: int  # any unit; actions are sorted by it.

    def __post_init__(self):
        if not -(2**63) <= self.time < 2**63:
            raise ValueError(f"time {self.time} is out of range")


@dataclasses.dataclass(frozen=True)
class ItemText:
    """The text that describes an item."""

    item: str
    title: str = ""
    categories: tuple[str, ...] = ()
    details: str = ""  # more words for the embedding: brand, description, city.

    @property
    def words(self) -> str:
        """All text of the item."""
        return " ".join([self.title, *self.categories, self.details]).strip()


def _always(cells: Sequence[str]) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a delimited file that has no header."""

    separator: str
    names: tuple[str, ...]
    fits: Callable[[Sequence[str]], bool] = _always  # whether a row can be of this layout.


@dataclasses.dataclass(frozen=True)
class Layout(Generic[Record]):
    """How to read one file of a dataset.

    Attributes:
      parse: makes a record of the fields of one; raises `ValueError` if they are malformed.
      required: fields that the header of a delimited file must name, each with its other names.
      optional: fields that the header may name.
      columns: layouts of delimited files without a header; the one that fits most rows is taken.
      expected: says in error messages what the file must be.
    """

    parse: Callable[[Mapping[str, Any]], Record]
    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    columns: tuple[Columns, ...]
    expected: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A public dataset: how to read its file of actions and its file of items."""

    actions: Layout[Action]
    items: Layout[ItemText]
