"""Requests of wrong types are refused by name; what means the same is taken."""

import decimal

import numpy as np
import pytest

from ega_jax.auction.system import Levers, check_levers
from ega_jax.errors import UserError
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.request_rules import RequestSizes, checked, checked_in_books
from ega_jax.types import BookRequest, Request

POI_CODES = np.zeros((20, 2), int)
FIELDS = {
    "history_poi": [[1, 2]],
    "history_creative": [[1, 2]],
    "item": [[3, 4, 5]],
    "is_ad": [[True, True, False]],
    "bid": [[1.0, 2.0, 0.0]],
}


def taken(width=0, **fields):
    return checked(Request(**FIELDS | fields), sizes(width))


def sizes(width):
    return RequestSizes(pois=20, creatives=30, history_length=4, context_width=width)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bid": [[1.0, None, 0]]}, "request 0, candidate 1, bid None: bids are numbers"),
        ({"bid": [["1", 2.0, 0]]}, "request 0, candidate 0, bid '1': bids are numbers"),
        ({"bid": None}, "bid None: bids are numbers"),
        ({"bid": [[decimal.Decimal("1.5"), 1, 0]]}, "candidate 0, bid Decimal"),
        ({"bid": [[True, True, False]]}, "bid is bool: bids are numbers"),
        ({"bid": [[1 + 2j, 1, 0]]}, "bid is complex128: bids are numbers"),
        ({"item": [[3, None, 5]]}, "request 0, candidate 1, item None: ids are integers"),
        ({"item": [["3", 4, 5]]}, "request 0, candidate 0, item '3': ids are integers"),
        ({"item": [[3.0, 4, 5]]}, "item is float64: ids are integers"),
        ({"item": [[3, 2**70, 5]]}, "item holds a number of more than 64 bits"),
        ({"history_poi": [[1, "2"]]}, "request 0, behaviour 1, history_poi '2': ids are"),
        ({"history_poi": [[1.5, 2]]}, "history_poi is float64: ids are integers"),
        ({"is_ad": [["False", True, False]]}, "candidate 0, is_ad 'False': flags are True"),
        ({"is_ad": [[1, 0, 2]]}, "is_ad is int64: flags are True or False"),
    ],
)
def test_values_of_wrong_types_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        taken(**fields)


def test_what_means_the_same_is_taken():
    expected = taken()
    objects = {name: np.array(values, dtype=object) for name, values in FIELDS.items()}
    for same in ({"is_ad": [[1, 1, 0]]}, {"bid": [[1, 2, 0]]}, objects):
        for name in FIELDS:
            values = getattr(taken(**same), name)
            np.testing.assert_array_equal(values, getattr(expected, name))
            assert values.dtype == getattr(expected, name).dtype


@pytest.mark.parametrize("value", ["2", None, [1.0], np.ones(2)])
def test_a_lever_is_one_number(value):
    with pytest.raises(UserError, match=r"lever beta is .*: it must be one number"):
        check_levers(Levers(), {"beta": value})


def named(width, **fields):
    """One request to a book of two ads."""
    book = BookLedger([3, 4], [1.0, 2.0], [0, 2], POI_CODES, 5, num_slots=1).book
    history = {name: FIELDS[name] for name in ("history_poi", "history_creative")}
    request = BookRequest(**history, organic=[[5, 6]], book=[0], **fields)
    return checked_in_books(request, sizes(width), book.book_start.size - 1)


@pytest.mark.parametrize("take", [taken, named])
@pytest.mark.parametrize(
    ("width", "context", "message"),
    [
        (2, None, "context is missing: the models read 2 values a request"),
        (2, [[1.0, 2.0, 3.0]], r"context is \[1, 3\], but a batch of 1 needs \[1, 2\]"),
        (2, [1.0, 2.0], r"context is \[2\], but a batch of 1 needs \[1, 2\]"),
        (2, [[1.0, 2.0], [0.0, 1.0]], r"context is \[2, 2\], but a batch of 1"),
        (2, [[1.0, np.nan]], "request 0, context 1: nan is not finite"),
        (2, [[1e300, 0.0]], r"request 0, context 0: 1e\+300 is not finite"),
        (2, [[1.0, None]], "request 0, value 1, context None: a context is made of numbers"),
        (2, [["a", 1.0]], "context 'a': a context is made of numbers"),
        (0, [[1.0]], "the models were trained on a log without a context"),
    ],
)
def test_a_context_is_there_of_its_width_and_finite(take, width, context, message):
    with pytest.raises(UserError, match=message):
        take(width, context=context)


@pytest.mark.parametrize("take", [taken, named])
def test_a_context_is_taken_as_float32(take):
    for context in ([[1, 2]], np.array([[1.0, 2.0]]), np.array([[1, 2.0]], object)):
        found = take(2, context=context).context
        np.testing.assert_array_equal(found, np.float32([[1, 2]]), strict=True)
    assert take(0).context is None
