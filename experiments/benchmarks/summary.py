"""A suite's results as Markdown: how each part ended, then a table of each kind of measurement."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def summary(records: Sequence[Record]) -> str:
    """Returns the text; records with a `status` say how a part ended, the others are measurements.

    Args:
      records: the lines of `results.jsonl`.
    """
    ends = [record for record in records if "status" in record]
    measured: dict[str, list[Record]] = {}
    for record in records:
        if "status" not in record:
            rest = {name: value for name, value in record.items() if name != "part"}
            measured.setdefault(record["part"], []).append(rest)
    columns = ("part", "status", "seconds", "compile_seconds", "reason")
    parts = [{name: end.get(name) for name in columns} for end in ends]
    sections = [f"## {part}\n\n{_rows(rows)}" for part, rows in measured.items()]
    return "\n".join(["## Parts\n", _table(parts), *sections])


def _rows(rows: list[Record]) -> str:
    """One record as a list of its fields, several as a table."""
    if len(rows) > 1:
        return _table(rows)
    return "".join(f"- {name}: {_text(value)}\n" for name, value in rows[0].items())


def _table(rows: Sequence[Record]) -> str:
    """A table with a column for every field of any row."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_text(row.get(name)) for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
