"""The order in which rows are visited: a pure function of the seed and the place in the run.

Parquet is read one row group at a time, so a log larger than memory cannot be shuffled as a whole.
Each epoch shuffles the row groups, joins them into pools that fit into memory,
and shuffles the rows of a pool.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Span:
    """Rows that lie in the same pool of the same epoch."""

    epoch: int
    groups: tuple[int, ...]  # the row groups that make up the pool.
    rows: np.ndarray  # [n] int, row numbers within the joined groups.


@dataclasses.dataclass(frozen=True)
class Order:
    """An endless order over the rows of some groups; every epoch visits each row once."""

    group_sizes: tuple[int, ...]  # rows of each group.
    seed: int | None  # none for the stored order, the same in every epoch.
    pool_rows: int = 32_768  # a pool is filled up to this size, with one group at least.

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.group_sizes)

    def spans(self, positions: np.ndarray) -> Iterator[Span]:
        """Finds the rows at some positions of the run.

        Args:
          positions: `[n]` int, ascending; position `p` is in epoch `p // num_rows`.

        Yields:
          Spans whose rows, joined, are those of `positions`.
        """
        epochs, places = np.divmod(positions, self.num_rows)
        for epoch in np.unique(epochs).tolist():
            pools, starts = _pools(self.group_sizes, self.pool_rows, self.seed, epoch)
            inside = places[epochs == epoch]
            pool_of = np.searchsorted(starts, inside, side="right") - 1
            for pool in np.unique(pool_of).tolist():
                size = sum(self.group_sizes[group] for group in pools[pool])
                rows = inside[pool_of == pool] - starts[pool]
                yield Span(epoch, pools[pool], _shuffled(size, self.seed, epoch, pool)[rows])


@functools.lru_cache(maxsize=4)
def _pools(
    sizes: tuple[int, ...], pool_rows: int, seed: int | None, epoch: int
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The epoch's pools of groups, and `[pools]` the position at which each begins."""
    pools: list[list[int]] = []
    filled = total = 0
    starts = []
    for group in _shuffled(len(sizes), seed, epoch, -1).tolist():
        if not pools or filled + sizes[group] > pool_rows:
            starts.append(total)
            pools.append([])
            filled = 0
        pools[-1].append(group)
        filled += sizes[group]
        total += sizes[group]
    return [tuple(pool) for pool in pools], np.array(starts)


@functools.lru_cache(maxsize=8)
def _shuffled(size: int, seed: int | None, epoch: int, pool: int) -> np.ndarray:
    """`[size]` a permutation of `0..size - 1`, different for every pool and epoch."""
    if seed is None:
        return np.arange(size)
    return np.random.default_rng((seed, epoch, pool + 1)).permutation(size)
