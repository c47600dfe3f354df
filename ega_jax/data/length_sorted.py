"""Batches of sequences of like length, without the padding they do not need.

Most histories are far shorter than the longest: if all are padded to it, most work is wasted.
Some consecutive batches are read together, their rows sorted by length and cut into batches again.
"""

import functools
from typing import Protocol

import numpy as np

from ega_jax.data.batch_source import Batch

WINDOW = 16  # batches that are sorted together.


class Source(Protocol):
    """Whole batches at random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


class LengthSorted:
    """Element `i` is one process's share of a batch whose rows have similar lengths.

    Like the source, it is a pure function of the seed and `i`. A window holds the rows of the
    source's batches of that window. Histories are cut to a quarter, half or all of `T`, targets to
    half or all of `K`, so that only a few shapes occur; only padding is cut.
    """

    def __init__(self, source: Source, share: range, seed: int):
        """Sets up the source.

        Args:
          source: whole batches, not shares of them: all processes must agree on lengths.
          share: the places of a batch that this process reads.
          seed: of the order of a window's batches.
        """
        self._source = source
        self._share = np.asarray(share)
        self._seed = seed
        self._window = functools.lru_cache(maxsize=2)(self._read_window)

    def __len__(self) -> int:
        return len(self._source) // WINDOW * WINDOW

    def __getitem__(self, index: int) -> Batch:
        """The share of batch `index`."""
        window, place = divmod(index, WINDOW)
        batch = self._window(window)[place]
        return {name: values[self._share] for name, values in batch.items()}

    def _read_window(self, window: int) -> list[Batch]:
        first = window * WINDOW
        parts = [self._source[index] for index in range(first, first + WINDOW)]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        history = cut(_lengths(rows["history_poi"]), rows["history_poi"].shape[1], shares=(4, 2))
        targets = cut(_lengths(rows["target_poi"]), rows["target_poi"].shape[1], shares=(2,))
        batches = np.split(np.lexsort((targets, history)), WINDOW)
        shuffled = np.random.default_rng((self._seed, window)).permutation(WINDOW)
        return [
            _trimmed(rows, batches[b], history[batches[b]].max(), targets[batches[b]].max())
            for b in shuffled
        ]


def cut(lengths: np.ndarray, full: int, shares: tuple[int, ...]) -> np.ndarray:
    """Rounds lengths `[n]` up to one of `full / share`, or to `full`."""
    widths = np.array([-(-full // share) for share in shares] + [full])
    return widths[np.searchsorted(widths, lengths)]


def _lengths(ids: np.ndarray) -> np.ndarray:
    return (ids >= 0).sum(axis=1)


def _trimmed(rows: Batch, chosen: np.ndarray, history: int, targets: int) -> Batch:
    """Some rows, without the first places of histories and the last places of targets."""
    keep = {"history": np.s_[-history:], "target": np.s_[:targets]}
    return {name: values[chosen][:, keep[name.partition("_")[0]]] for name, values in rows.items()}
