import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ega_jax.data.membership import is_among, is_first, is_in_sorted
from ega_jax.data.ragged import Ragged

BOUND = 5
LISTS = st.lists(st.lists(st.integers(0, BOUND - 1), max_size=6), min_size=1, max_size=8)


def ragged(lists):
    return Ragged.joined([Ragged(np.array(row, int), np.array([0, len(row)])) for row in lists])


@given(LISTS)
def test_first_values_of_rows_are_those_of_a_loop(lists):
    expected = [value not in row[:place] for row in lists for place, value in enumerate(row)]
    assert is_first(ragged(lists), BOUND).tolist() == expected


@given(LISTS, st.randoms())
def test_membership_is_that_of_a_loop(lists, random):
    others = [random.choices(range(BOUND), k=random.randrange(4)) for _ in lists]
    expected = [value in others[row] for row, values in enumerate(lists) for value in values]
    assert is_among(ragged(lists), ragged(others), BOUND).tolist() == expected


def test_nothing_is_in_an_empty_array():
    assert is_in_sorted(np.array([3, 0]), np.zeros(0, int)).tolist() == [False, False]
