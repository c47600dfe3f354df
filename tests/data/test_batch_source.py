import dataclasses

import numpy as np

from ega_jax.data.batch_source import BatchSource
from ega_jax.data.order import Order


@dataclasses.dataclass
class CountingRows:
    """Row numbers for examples, and a list of what was read."""

    group_sizes: tuple[int, ...]
    loads: list

    def load(self, groups):
        self.loads.append(groups)
        return groups

    def examples(self, pool, rows, epoch):
        weights = np.ones(len(rows), np.float32)
        return {"row": np.int32(rows), "weight": weights}


def source_of(num_examples, batch_size, share=None, seed=None, sizes=(4,) * 6):
    rows = CountingRows(sizes, [])
    order = Order(sizes, seed=seed, pool_rows=8)
    return BatchSource(rows, order, num_examples, batch_size, share or range(batch_size)), rows


def test_each_pool_is_read_once_per_epoch():
    """Rows of a pool are read together, so a log larger than memory is streamed."""
    source, rows = source_of(24, 6, seed=0)
    for index in range(len(source)):
        source[index]
    assert len(rows.loads) == 3
    assert sorted(sum(rows.loads, ())) == list(range(6))


def test_places_after_the_last_example_are_blank():
    source, _ = source_of(num_examples=8, batch_size=5, sizes=(8,))
    assert len(source) == 2
    assert source[0]["row"].tolist() == [0, 1, 2, 3, 4]
    assert source[1]["row"].tolist() == [5, 6, 7, -1, -1]
    assert source[1]["weight"].tolist() == [1, 1, 1, 0, 0]


def test_a_share_holds_its_places_of_the_batch():
    source, _ = source_of(num_examples=8, batch_size=5, share=range(2, 4), sizes=(8,))
    assert source[0]["row"].tolist() == [2, 3]
    assert source[1]["row"].tolist() == [7, -1]
