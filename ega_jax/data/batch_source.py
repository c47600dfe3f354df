"""Whole batches at random access.

Element `i` of the source is batch `i`, a pure function of the seed and `i`. So the state of
grain's iterator, the next `i`, is all that is needed to resume exactly, and every process of a run
reads its share of the same batches.
"""

import functools
import math
import threading
from typing import Any, Protocol

import numpy as np

from ega_jax.data.order import Order, Span

Batch = dict[str, np.ndarray]


class Rows(Protocol):
    """The rows of one split, in groups that are read at one time."""

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Rows of each group."""
        ...

    def load(self, groups: tuple[int, ...]) -> Any:
        """Reads some groups, joined into a pool."""
        ...

    def examples(self, pool: Any, rows: np.ndarray, epoch: int) -> Batch:
        """Examples `[n, ...]` of some rows of a pool."""
        ...


class InMemoryRows:
    """Rows that need no reading: one group, of `num_rows`."""

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        raise NotImplementedError

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """One group: all is in memory."""
        return (self.num_rows,)

    def load(self, groups: tuple[int, ...]) -> None:
        """Returns nothing: all is in memory."""


class BatchSource:
    """A random-access source whose element `i` is one process's share of batch `i`."""

    def __init__(self, rows: Rows, order: Order, num_examples: int, batch_size: int, share: range):
        """Sets up the source.

        Args:
          rows: where examples come from.
          order: in which order.
          num_examples: how many are read before the source ends.
          batch_size: B, over all processes.
          share: the places of a batch that this process reads.
        """
        self._rows = rows
        self._order = order
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._share = np.asarray(share)
        self._load = functools.lru_cache(maxsize=2)(rows.load)
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return math.ceil(self._num_examples / self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        """The share of batch `index`; places after the last example are blank."""
        positions = index * self._batch_size + self._share
        present = np.minimum(positions, self._num_examples - 1)
        parts = [self._examples(span) for span in self._order.spans(present)]
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return _blank(batch, where=positions >= self._num_examples)

    def _examples(self, span: Span) -> Batch:
        with self._loading:
            pool = self._load(span.groups)
        return self._rows.examples(pool, span.rows, span.epoch)


def _blank(batch: Batch, where: np.ndarray) -> Batch:
    """Empties some rows: ids become -1, weights 0 and flags false."""
    for values in batch.values():
        values[where] = -1 if values.dtype == np.int32 else 0
    return batch
