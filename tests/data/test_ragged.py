import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from ega_jax.data.ragged import Ragged

LISTS = st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=8)


def ragged(lists):
    return Ragged.from_arrow(pa.chunked_array([pa.array(lists, pa.list_(pa.int32()))]), np.int32)


@given(LISTS, st.integers(1, 7))
def test_first_and_last_pad_like_a_loop(lists, width):
    rows = np.arange(len(lists))[::-1]
    first, last = ragged(lists).first(rows, width, -1), ragged(lists).last(rows, width, -1)
    for place, row in enumerate(rows):
        values = lists[row][:width]
        assert first[place].tolist() == values + [-1] * (width - len(values))
        values = lists[row][-width:]
        assert last[place].tolist() == [-1] * (width - len(values)) + values


def test_gather_fills_places_outside_the_row():
    got = ragged([[1, 2, 3], [], [4]]).gather(
        np.array([2, 0, 1]), np.array([[-1, 0, 1], [2, 3, 0], [0, 0, 0]]), -7
    )
    np.testing.assert_array_equal(got, [[-7, 4, -7], [3, -7, 1], [-7, -7, -7]])


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int64())])
def test_from_arrow_joins_chunks_and_slices(kind):
    whole = pa.array([[9], [1, 2], [], [3]], kind)
    column = pa.chunked_array([whole.slice(1, 2), whole.slice(3)])
    got = Ragged.from_arrow(column, np.int32)
    assert got.values.tolist() == [1, 2, 3]
    assert got.offsets.tolist() == [0, 2, 2, 3]
    assert got.values.dtype == np.int32
    assert got.row_of_value().tolist() == [0, 0, 2]


def test_from_arrow_of_no_rows():
    got = Ragged.from_arrow(pa.chunked_array([], pa.list_(pa.bool_())), bool)
    assert got.num_rows == 0
    assert got.values.dtype == bool
