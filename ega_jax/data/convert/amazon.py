"""Amazon reviews: the dumps of 2014, 2018 and 2023.

Reviews are JSON, or csv with ids and ratings alone. Metadata of the items are JSON; those of 2014
hold Python literals instead, which are read too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ega_jax.data.convert.fields import id_field, texts, time_field
from ega_jax.data.convert.source import Action, Columns, ItemText, Layout, Source

USER = ("reviewerID", "user_id", "user")
ITEM = ("parent_asin", "asin", "ProductId", "item_id", "item")
TIME = ("unixReviewTime", "timestamp", "time")
_DETAILS = ("brand", "store", "features", "description")
_ASIN = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")


def parse_review(record: Mapping[str, Any]) -> Action:
    """A review or a rating."""
    return Action(id_field(record, *USER), id_field(record, *ITEM), time_field(record, *TIME))


def parse_metadata(record: Mapping[str, Any]) -> ItemText:
    """The metadata of an item."""
    categories = texts(record.get("categories")) or texts(record.get("category"))
    return ItemText(
        item=id_field(record, *ITEM),
        title=" ".join(texts(record.get("title"))),
        categories=tuple(dict.fromkeys(categories)),
        details=" ".join(texts([record.get(name) for name in _DETAILS])),
    )


def _item_first(cells: Sequence[str]) -> bool:
    """Whether the first of two ids is the product's; ids of users are no product numbers."""
    first, second = (bool(_ASIN.fullmatch(cell.strip())) for cell in cells[:2])
    return first and not second


def _user_first(cells: Sequence[str]) -> bool:
    return not _item_first(cells)


REVIEWS = Layout(
    parse_review,
    required=(USER, ITEM, TIME),
    optional=(),
    columns=(  # The ratings of 2014 name the user first, those of 2018 the item.
        Columns(",", ("reviewerID", "asin", "rating", "timestamp"), _user_first),
        Columns(",", ("asin", "reviewerID", "rating", "timestamp"), _item_first),
    ),
    expected=(
        "reviews as JSON lines or a JSON array, with the fields reviewerID (or user_id), asin (or "
        "parent_asin) and unixReviewTime (or timestamp); or ratings as csv, either without a "
        "header (user,item,rating,timestamp or item,user,rating,timestamp) or with the header "
        "user_id,parent_asin,rating,timestamp"
    ),
)
METADATA = Layout(
    parse_metadata,
    required=(ITEM, ("title",)),
    optional=("categories", "category", *_DETAILS),
    columns=(),
    expected=(
        "metadata as JSON lines, a JSON array or lines of Python literals, with the field asin "
        "(or parent_asin) and, where known, title, categories (or category), brand (or store), "
        "features and description; or csv with a header that names asin and title"
    ),
)
AMAZON = Source(REVIEWS, METADATA)
