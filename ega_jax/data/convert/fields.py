"""Fields of one raw record: ids, times and text."""

import datetime
import html
import math
import re
from collections.abc import Mapping
from typing import Any

_ENTITY = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]*);")


def id_field(record: Mapping[str, Any], *names: str) -> str:
    """The first of some fields that is present, as an id without blanks around it.

    Raises:
      ValueError: none is present, or its value is no text, empty, or not valid Unicode.
    """
    name, value = _first(record, names)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"'{name}' must be text, found {value!r}")
    value.encode()
    return value.strip()


def time_field(record: Mapping[str, Any], *names: str) -> int:
    """The first of some fields that is present, as a time.

    A number keeps its unit and loses its fraction. A date (`2005-04-02 23:53:47`, with or without
    a time of day) becomes seconds since 1970; a date without a time zone is in UTC.

    Raises:
      ValueError: none is present, or its value is neither a number nor a date.
    """
    name, value = _first(record, names)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"'{name}' must be a number or a date, found {value!r}")
    try:
        return _number(value)
    except (ValueError, OverflowError) as error:
        if isinstance(value, str) and any(mark in value for mark in "-/: "):
            return _date(name, value)
        raise ValueError(f"'{name}' must be a number or a date, found {value!r}") from error


def texts(value: Any) -> list[str]:
    """The text in nested lists or in one string, cleaned; other values hold none."""
    if isinstance(value, str):
        cleaned = clean_text(value)
        return [cleaned] if cleaned else []
    if isinstance(value, list | tuple):
        return [text for part in value for text in texts(part)]
    return []


def clean_text(text: str) -> str:
    """Text with HTML entities replaced, also those that were escaped twice (`&amp;quot;`).

    Only entities that end with a semicolon are replaced: `html.unescape` alone also reads the
    start of `&section` as one. Half a surrogate pair, which JSON allows, becomes a question mark.
    """
    while (plain := _ENTITY.sub(_unescape, text)) != text:
        text = plain
    return text.encode(errors="replace").decode().strip()


def _unescape(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    for name in names:
        if name in record:
            return name, record[name]
    raise ValueError("no field " + " or ".join(f"'{name}'" for name in names))


def _number(value: int | float | str) -> int:
    try:
        return int(value) if isinstance(value, int | str) else math.floor(value)
    except ValueError:
        return math.floor(float(value))


def _date(name: str, value: str) -> int:
    try:
        date = datetime.datetime.fromisoformat(value.strip())
    except ValueError as error:
        raise ValueError(f"'{name}' must be a number or a date, found {value!r}") from error
    return math.floor((date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp())
