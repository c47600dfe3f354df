"""Yelp Open Dataset: `review.json` and `business.json`, JSON lines."""

import datetime
import json

from ega_jax.data.convert.source import Action, ItemText, Source, flatten_text, text_field


def parse_review(line: str) -> Action:
    """A line of the reviews; dates are with or without a time of day."""
    record = json.loads(line)
    date = datetime.datetime.fromisoformat(text_field(record, "date"))
    return Action(
        user=text_field(record, "user_id"),
        item=text_field(record, "business_id"),
        time=int(date.replace(tzinfo=datetime.UTC).timestamp()),
    )


def parse_business(line: str) -> ItemText:
    """A line of the businesses; categories are a list, or text with commas."""
    record = json.loads(line)
    categories = record.get("categories")
    if isinstance(categories, str):
        categories = [name.strip() for name in categories.split(",")]
    return ItemText(
        item=text_field(record, "business_id"),
        title=text_field(record, "name"),
        categories=tuple(flatten_text(categories)),
        details=" ".join(flatten_text([record.get("city"), record.get("state")])),
    )


YELP = Source(parse_review, parse_business)
