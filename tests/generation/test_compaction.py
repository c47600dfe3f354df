"""Only the wanted rows are computed, whatever their number."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.generation.compaction import first_equal, map_distinct, map_where


@pytest.mark.parametrize("chunk", [1, 3, 8, 20])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_wanted_rows_are_as_if_all_were_computed(chunk, share):
    rng = np.random.default_rng(int(10 * share) + chunk)
    values = rng.normal(size=(11, 2)).astype(np.float32)
    where = rng.random(11) < share
    found = jax.jit(
        lambda values, where: map_where(
            lambda rows: {"double": 2 * values[rows], "row": rows}, where, chunk
        )
    )(values, where)
    chex.assert_trees_all_close(found["double"], np.where(where[:, None], 2 * values, 0.0))
    chex.assert_trees_all_equal(found["row"], np.where(where, np.arange(11), 0))


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_a_single_row_is_computed(chunk):
    """Compiled writes of a chunk of several rows into one row would all be dropped."""
    rows, every = jnp.array([[3, 4]]), jnp.ones(1, bool)
    double = lambda rows_of: map_distinct(lambda index: 2 * rows_of[index], rows_of, every, chunk)
    assert jax.jit(double)(rows).tolist() == [[6, 8]]


def test_the_work_follows_the_number_of_wanted_rows():
    calls = []

    def function(rows):
        jax.debug.callback(lambda: calls.append(1))
        return rows

    for wanted, chunks in ((0, 0), (1, 1), (4, 1), (5, 2), (12, 3)):
        calls.clear()
        jax.block_until_ready(map_where(function, jnp.arange(12) < wanted, 4))
        jax.effects_barrier()
        assert len(calls) == chunks


def test_equal_rows_point_at_the_first():
    rng = np.random.default_rng(0)
    for length in (1, 3):
        rows = rng.integers(-1, 2, (30, length)).astype(np.int32)
        expected = [
            next(i for i, r in enumerate(rows.tolist()) if r == row) for row in rows.tolist()
        ]
        np.testing.assert_array_equal(jax.jit(first_equal)(rows), expected)


def test_equal_rows_are_computed_once():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 2, (20, 2)).astype(np.int32)
    where = rng.random(20) < 0.7
    seen = []

    def function(numbers):
        jax.debug.callback(lambda n: seen.append(np.asarray(n)), numbers)
        return 10 * rows_[numbers, 0] + rows_[numbers, 1]

    rows_ = jnp.asarray(rows)
    found = map_distinct(function, rows_, jnp.asarray(where), chunk=1)
    jax.effects_barrier()
    np.testing.assert_array_equal(np.asarray(found)[where], (10 * rows[:, 0] + rows[:, 1])[where])
    assert len(seen) == len({tuple(row) for row in rows[where].tolist()})
