"""Records of JSON files: one a line, one array, or one after another over several lines."""

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_GAP = re.compile(r"[\s,\[\]]*")
_CHUNK = 2**20
_CUT = 16  # An error this near to the end of what was read may be for want of the rest.


@dataclasses.dataclass(frozen=True)
class Malformed:
    """Why a record cannot be used."""

    reason: str


Row = tuple[int, dict[str, Any] | Malformed]  # the number of its first line, from 1; the record.


class BrokenJSONError(ValueError):
    """The rest of a JSON file cannot be read."""


def is_json(head: list[str]) -> bool:
    """Whether the first lines are those of a JSON file."""
    return _are_objects(head) or head[0].lstrip().startswith(("{", "["))


def _are_objects(head: list[str]) -> bool:
    """Whether half of the lines or more look like whole objects; a few may be malformed."""
    stripped = [line.strip() for line in head]
    return 2 * sum(line.startswith("{") and line.endswith("}") for line in stripped) >= len(head)


def json_rows(file: TextIO, head: list[str]) -> Iterator[Row]:
    """The objects of a JSON file.

    Args:
      file: the text.
      head: its first lines that are not blank.

    Raises:
      BrokenJSONError: an array or an object over several lines is malformed; names the line.
    """
    first, second = (line.strip() for line in [*head, ""][:2])
    spread = first.startswith("[") or (first == "{" and not second.startswith("{"))
    return _stream(file) if spread and not _are_objects(head) else _lines(file)


def _lines(file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, _object(line)


def _object(line: str) -> dict[str, Any] | Malformed:
    """An object of JSON, or else of Python literals."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        try:
            record = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return Malformed(f"neither JSON nor a Python literal ({error})")
    return record if isinstance(record, dict) else Malformed("not an object")


def _stream(file: TextIO) -> Iterator[Row]:
    """Objects between brackets, commas and white space; memory holds one of them at a time."""
    decoder = json.JSONDecoder()
    text, place, line = "", 0, 1
    while True:
        start = _GAP.match(text, place).end()  # pyrefly: ignore
        try:
            record, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            if more := _is_cut(error, text) and file.read(max(_CHUNK, len(text) - place)):
                text, place = text[place:] + more, 0
                continue
            if start == len(text):
                return
            number = line + text.count("\n", place, error.pos)
            raise BrokenJSONError(f"line {number}: not valid JSON ({error.msg})") from error
        except RecursionError as error:
            raise BrokenJSONError(f"line {line}: nested too deeply") from error
        line += text.count("\n", place, start)
        yield line, record if isinstance(record, dict) else Malformed("not an object")
        line, place = line + text.count("\n", start, end), end


def _is_cut(error: json.JSONDecodeError, text: str) -> bool:
    return error.msg.startswith("Unterminated") or error.pos >= len(text) - _CUT
