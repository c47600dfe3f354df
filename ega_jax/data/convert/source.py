"""What a public dataset is to the converter: how to read a line of each of its two files."""

import dataclasses
from collections.abc import Callable
from typing import Any


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
    """What is known of an item."""

    item: str
    title: str = ""
    categories: tuple[str, ...] = ()
    details: str = ""  # more words for the embedding: brand, description, city.

    @property
    def words(self) -> str:
        """All text of the item."""
        return " ".join([self.title, *self.categories, self.details]).strip()


@dataclasses.dataclass(frozen=True)
class Source:
    """Parsers of one line; they return none for a header and raise for a malformed line."""

    parse_action: Callable[[str], Action | None]
    parse_item: Callable[[str], ItemText | None]
    encoding: str = "utf-8"


def text_field(record: dict[str, Any], *names: str) -> str:
    """The first of some fields that is present; it must be text, and not empty."""
    for name in names:
        if name in record:
            if isinstance(record[name], str) and record[name]:
                return record[name]
            raise ValueError(f"'{name}' must be text, found {record[name]!r}")
    raise KeyError(names[0])


def flatten_text(value: Any) -> list[str]:
    """All the text in nested lists, or in one string; nothing of other values."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list | tuple):
        return [text for part in value for text in flatten_text(part)]
    return []
