"""Amazon reviews: the dumps of 2014, 2018 and 2023, JSON lines with metadata of the items.

Metadata of 2014 holds Python literals instead of JSON; both are read.
"""

import ast
import json
from typing import Any

from ega_jax.data.convert.source import Action, ItemText, Source, flatten_text, text_field


def parse_review(line: str) -> Action:
    """A line of the reviews."""
    record = json.loads(line)
    time = record["unixReviewTime"] if "unixReviewTime" in record else record["timestamp"]
    return Action(
        user=text_field(record, "reviewerID", "user_id"),
        item=text_field(record, "parent_asin", "asin"),
        time=int(time),
    )


def parse_metadata(line: str) -> ItemText:
    """A line of the metadata."""
    record = _literal(line)
    categories = flatten_text(record.get("categories")) or flatten_text(record.get("category"))
    details = [record.get(name) for name in ("brand", "store", "features", "description")]
    return ItemText(
        item=text_field(record, "parent_asin", "asin"),
        title=" ".join(flatten_text(record.get("title"))),
        categories=tuple(dict.fromkeys(categories)),
        details=" ".join(flatten_text(details)),
    )


def _literal(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        record = ast.literal_eval(line)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return record


AMAZON = Source(parse_review, parse_metadata)
