"""The rules for the slate of a session: what could be shown, what was, and the feedback on it."""

import numpy as np

from ega_jax.data.book_rules import BookIndex, book_numbers, check_ads
from ega_jax.data.checks import Part
from ega_jax.data.columns import is_list, to_numpy
from ega_jax.data.membership import is_among, is_first
from ega_jax.data.ragged import Ragged


def check_creatives(
    part: Part, column: str, poi_column: str, pois: Ragged, creative_poi: np.ndarray
):
    """Each creative must exist and belong to the POI at its side."""
    creatives = part.ids(column, len(creative_poi), "creative")
    part.require_equal_lengths(creatives, column, pois, poi_column)
    ok = creative_poi[creatives.values] == pois.values
    part.require_values(ok, creatives, column, f"a creative must belong to its '{poi_column}'")


def check_shown(
    part: Part, num_pois: int, creative_poi: np.ndarray | None, num_slots: int | None
) -> Ragged:
    """The slates; returns the POIs shown."""
    shown = part.ids("shown_poi", num_pois, "POI")
    if creative_poi is not None:
        check_creatives(part, "shown_creative", "shown_poi", shown, creative_poi)
    if num_slots is not None:
        rule = f"at most {num_slots} items fit the slots"
        part.require(shown.lengths <= num_slots, "shown_poi", rule, shown.lengths)
    part.require_values(is_first(shown, num_pois), shown, "shown_poi", "an item is shown once")
    return shown


def check_candidates(
    part: Part, shown: Ragged, num_pois: int, books: BookIndex | None
) -> tuple[np.ndarray, Ragged]:
    """What could be shown, and whether all that was shown is of it.

    Returns:
      `[rows]` how many ads a session holds itself, and the organic items.
    """
    is_ad = part.flags("shown_is_ad")
    part.require_equal_lengths(is_ad, "shown_is_ad", shown, "shown_poi")
    if books is None:
        ads = check_ads(part, num_pois)
        num_ads, is_offered = ads.lengths, is_among(shown, ads, num_pois)
        rule = "a shown item must be in its 'ad_poi'"
    else:
        book = _check_book(part, books)
        num_ads = np.zeros(len(book), np.int64)
        is_offered = books.hold(book[shown.row_of_value()], shown.values)
        rule = "a shown ad must be in the book that its 'book_id' names"
    part.require_values(~is_ad.values | is_offered, shown, "shown_poi", rule)
    organic = _check_organic(part, shown, is_ad, num_pois)
    return num_ads, organic


def _check_book(part: Part, books: BookIndex) -> np.ndarray:
    """The books that sessions name: `[rows]` int32 their numbers."""
    ids = part.numbers("book_id", np.int64)
    book = book_numbers(books.book_id, ids)
    part.require(book >= 0, "book_id", "no book has this id", ids)
    return book


def _check_organic(part: Part, shown: Ragged, is_ad: Ragged, num_pois: int) -> Ragged:
    """The organic items, and whether all that was shown as such is of them."""
    organic = part.ids("organic_poi", num_pois, "POI")
    once = is_first(organic, num_pois)
    part.require_values(once, organic, "organic_poi", "a candidate must come once")
    ok = is_ad.values | is_among(shown, organic, num_pois)
    part.require_values(ok, shown, "shown_poi", "a shown item must be in its 'organic_poi'")
    return organic


def check_feedback(part: Part, shown: Ragged):
    """Clicks and conversions of what was shown, and how it came to be shown."""
    flags = {name: part.flags(name) for name in ("click_poi", "click_image", "convert")}
    for column, lists in flags.items():
        part.require_equal_lengths(lists, column, shown, "shown_poi")
    click = flags["click_poi"].values | flags["click_image"].values
    convert = flags["convert"]
    part.require_values(~convert.values | click, convert, "convert", "a conversion needs a click")
    if "propensity" in part.table.column_names:
        _check_propensity(part, shown)
    if "explored" in part.table.column_names:
        part.flag("explored")


def _check_propensity(part: Part, shown: Ragged):
    """Propensities of a slate, or of each item shown; a null is one that is not known."""
    rule = "propensities must be in (0, 1]"
    column, known = "propensity", part.known("propensity")
    if is_list(part.table[column].type):
        lists = part.lists(column, np.float64, null_is_empty=True)
        same = ~known | (lists.lengths == shown.lengths)
        part.require(same, column, "a list must be as long as that of 'shown_poi'", lists.lengths)
        part.require_values(_is_propensity(lists.values), lists, column, rule)
    else:
        propensity = to_numpy(part.table[column], np.float64)
        part.require(~known | _is_propensity(propensity), column, rule, propensity)


def _is_propensity(values: np.ndarray) -> np.ndarray:
    return (values > 0) & (values <= 1 + 1e-6)
