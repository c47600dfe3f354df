"""Whether values of a column of lists come first in their row, or stand in another list of it."""

import numpy as np

from ega_jax.data.ragged import Ragged


def row_keys(lists: Ragged, bound: int) -> np.ndarray:
    """`[V]` int64 numbers that are equal for equal values, in [0, bound), of the same row."""
    return lists.row_of_value() * bound + lists.values


def is_first(lists: Ragged, bound: int) -> np.ndarray:
    """`[V]` whether no value before it in its row equals a value of `lists`, in [0, bound)."""
    keys = row_keys(lists, bound)
    found = np.zeros(keys.shape, bool)
    found[np.unique(keys, return_index=True)[1]] = True
    return found


def is_among(lists: Ragged, others: Ragged, bound: int) -> np.ndarray:
    """`[V]` whether each value of `lists`, in [0, bound), is in the same row of `others`."""
    return is_in_sorted(row_keys(lists, bound), np.sort(row_keys(others, bound)))


def is_in_sorted(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """`[V]` whether each of `keys` `[V]` is in an ascending array `[n]`."""
    place = np.searchsorted(ascending, keys)
    found = place < len(ascending)
    found[found] = ascending[place[found]] == keys[found]
    return found
