"""Requests of wrong types are refused by name; what means the same is taken."""

import decimal

import numpy as np
import pytest

from ega_jax.auction.system import Levers, check_levers
from ega_jax.errors import UserError
from ega_jax.request_rules import checked
from ega_jax.types import Catalogue, Request

CATALOGUE = Catalogue(
    poi_codes=np.zeros((20, 2), int),
    creative_codes=np.zeros((30, 2), int),
    poi_creatives=np.zeros((20, 1), int),
)
FIELDS = {
    "history_poi": [[1, 2]],
    "history_creative": [[1, 2]],
    "item": [[3, 4, 5]],
    "is_ad": [[True, True, False]],
    "bid": [[1.0, 2.0, 0.0]],
}


def taken(**fields):
    return checked(Request(**FIELDS | fields), CATALOGUE, 4)


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
        for name, values in vars(taken(**same)).items():
            np.testing.assert_array_equal(values, getattr(expected, name))
            assert values.dtype == getattr(expected, name).dtype


@pytest.mark.parametrize("value", ["2", None, [1.0], np.ones(2)])
def test_a_lever_is_one_number(value):
    with pytest.raises(UserError, match=r"lever beta is .*: it must be one number"):
        check_levers(Levers(), {"beta": value})
