import itertools

import numpy as np
import pytest

from ega_jax.data.order import Order

SIZES = (5, 1, 7, 4, 3)


def rows_of(order, positions):
    """Global (epoch, row) pairs at some positions."""
    starts = np.concatenate([[0], np.cumsum(order.group_sizes)])
    visited = []
    for span in order.spans(np.asarray(positions)):
        joined = np.concatenate([np.arange(starts[g], starts[g + 1]) for g in span.groups])
        visited += [(span.epoch, row) for row in joined[span.rows].tolist()]
    return visited


@pytest.mark.parametrize("pool_rows", [1, 6, 100])
def test_every_row_comes_once_per_epoch(pool_rows):
    order = Order(SIZES, seed=3, pool_rows=pool_rows)
    visited = rows_of(order, range(60))
    for epoch in range(3):
        assert sorted(visited[20 * epoch : 20 * (epoch + 1)]) == [(epoch, r) for r in range(20)]
    assert [row for _, row in visited[:20]] != [row for _, row in visited[20:40]]


def test_any_cut_of_the_run_gives_the_same_rows():
    order = Order(SIZES, seed=0, pool_rows=6)
    whole = rows_of(order, range(47))
    parts = (rows_of(order, range(start, min(start + 9, 47))) for start in range(0, 47, 9))
    assert list(itertools.chain.from_iterable(parts)) == whole


def test_the_seed_sets_the_order():
    first, again, other = (
        rows_of(Order(SIZES, seed=seed, pool_rows=6), range(20)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_pools_of_one_size_are_shuffled_differently():
    spans = list(Order((50, 50), seed=1, pool_rows=50).spans(np.arange(100)))
    assert len(spans) == 2
    assert spans[0].rows.tolist() != spans[1].rows.tolist()


def test_without_a_seed_rows_keep_their_order():
    order = Order(SIZES, seed=None, pool_rows=6)
    assert rows_of(order, range(20)) == [(0, row) for row in range(20)]


def test_pools_hold_as_many_groups_as_fit():
    pools = {span.groups for span in Order(SIZES, seed=None, pool_rows=6).spans(np.arange(20))}
    assert pools == {(0, 1), (2,), (3,), (4,)}
