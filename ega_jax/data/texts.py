"""What items are called: optional columns of text, which any writer may have given any type."""

from typing import Any

from ega_jax.data.reading import columns_of
from ega_jax.data.tables import Table


def read_texts(table: Table, column: str) -> list[str | None]:
    """The text of each row; none where there is none."""
    return [text_of(value) for value in _values(table, column)]


def read_tags(table: Table, column: str) -> list[list[str]]:
    """The tags of each row; a text instead of a list is one tag, lists of lists are joined."""
    return [tags_of(value) for value in _values(table, column)]


def text_of(value: Any) -> str | None:
    """A value as text; none if it is null, a list or a record."""
    if value is None or isinstance(value, list | tuple | dict):
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def tags_of(value: Any) -> list[str]:
    """A value as a list of tags: the texts in a list, or one text."""
    if isinstance(value, list | tuple):
        return [tag for inner in value for tag in tags_of(inner)]
    text = text_of(value)
    return [] if not text else [text]


def _values(table: Table, column: str) -> list[Any]:
    """A column as Python values; nothing but none where a file has no use of it."""
    values: list[Any] = []
    for file, chunks in zip(table.files, columns_of(table, column), strict=True):
        values += chunks.to_pylist() if column in file.usable else [None] * file.num_rows
    return values
