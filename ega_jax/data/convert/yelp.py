"""Yelp Open Dataset: `review.json` and `business.json`, JSON lines or csv with a header."""

import re
from collections.abc import Mapping
from typing import Any

from ega_jax.data.convert.fields import clean_text, id_field, texts, time_field
from ega_jax.data.convert.source import Action, ItemText, Layout, Source


def parse_review(record: Mapping[str, Any]) -> Action:
    """A review; its date has a time of day or none."""
    return Action(
        user=id_field(record, "user_id"),
        item=id_field(record, "business_id"),
        time=time_field(record, "date"),
    )


def parse_business(record: Mapping[str, Any]) -> ItemText:
    """A business; one without a name keeps its categories and its city.

    Categories are a list, or text with commas (JSON) or semicolons (csv) between them.
    """
    categories = record.get("categories")
    if isinstance(categories, str):
        categories = re.split("[,;]", clean_text(categories))
    return ItemText(
        item=id_field(record, "business_id"),
        title=" ".join(texts(record.get("name"))),
        categories=tuple(dict.fromkeys(texts(categories))),
        details=" ".join(texts([record.get("city"), record.get("state")])),
    )


YELP = Source(
    Layout(
        parse_review,
        required=(("user_id",), ("business_id",), ("date",)),
        optional=(),
        columns=(),
        expected=(
            "reviews as JSON lines, a JSON array or csv with a header, with the fields user_id, "
            "business_id and date (review.json)"
        ),
    ),
    Layout(
        parse_business,
        required=(("business_id",),),
        optional=("name", "categories", "city", "state"),
        columns=(),
        expected=(
            "businesses as JSON lines, a JSON array or csv with a header, with the field "
            "business_id and, where known, name, categories, city and state (business.json)"
        ),
    ),
)
