"""Extension of the reference: comments at the fields of a class become its list of attributes.

Fields of structs and settings are explained by comments, with shape and unit, not by docstrings.
"""

import ast
import re
from typing import Any

import griffe

_TRAILING = re.compile(r"\s{2}# (.+)$")
_WHOLE_LINE = re.compile(r"^\s*# (.+)$")


def comment_of(lines: list[str], first: int, last: int) -> str:
    """The comment of a field that stands on lines `first` to `last`, counted from 1.

    Args:
      lines: of the file.
      first: line of the field.
      last: its last line, which may end in a comment.

    Returns:
      The comment above the field and the one at its end, joined; empty if there is none.
    """
    found = []
    above = first - 1
    while above and (match := _WHOLE_LINE.match(lines[above - 1])):
        found.insert(0, match[1])
        above -= 1
    if match := _TRAILING.search(lines[last - 1]):
        found.append(match[1])
    return " ".join(found)


class FieldComments(griffe.Extension):
    """Adds a section of attributes to the docstrings of classes that have none."""

    def on_class_members(
        self, *, node: ast.AST | griffe.ObjectNode, cls: griffe.Class, **kwargs: Any
    ) -> None:
        """Describes the fields of one class."""
        if cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        lines = cls.filepath.read_text().splitlines()
        described = [
            f"  {field.name}: {text}"
            for field in cls.members.values()  # Its own: inherited ones are in another file.
            if field.is_attribute and field.is_public and (text := _description(field, lines))
        ]
        if described:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(described)


def _description(field: griffe.Attribute, lines: list[str]) -> str:
    """A field's comment and its default."""
    comment = comment_of(lines, field.lineno or 1, field.endlineno or field.lineno or 1)
    default = f"Default: `{field.value}`." if comment and field.value is not None else ""
    return " ".join(part for part in (comment, default) if part)
