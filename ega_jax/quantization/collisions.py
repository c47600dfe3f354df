"""Collisions, items with equal codes: reassigned in the last layer or numbered (sec. 4.1.2).

This runs once per catalogue on the host, since groups vary in size and the assignment problem is
combinatorial.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from ega_jax.errors import UserError


def resolve(codes: np.ndarray, left: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Gives items with a common prefix distinct codes in the last layer.

    The method treats each group of items that share all codes but the last, if any two collide. It
    assigns their last codes so that each codeword is used at most once and the sum of squared
    distances to the codewords is minimal. If a group has more than W items, the best assignment
    covers W of them; the others keep their nearest code and collide.

    Args:
      codes: [n, C] int nearest codes.
      left: [n, L] residuals that the last layer quantises.
      codebook: [W, L] codewords of the last layer.

    Returns:
      [n, C] int32 codes.
    """
    resolved = np.array(codes, np.int32)
    norm = np.sum(codebook**2, axis=-1)
    for items in _colliding_groups(resolved):
        given = left[items]
        distance = np.sum(given**2, axis=-1)[:, None] - 2 * given @ codebook.T + norm
        rows, columns = linear_sum_assignment(distance)
        resolved[items[rows], -1] = columns
    return resolved


def disambiguate(codes: np.ndarray, num_codes: int) -> np.ndarray:
    """Adds a layer that numbers the items with equal codes, so that all codes are distinct.

    Args:
      codes: [n, C] int.
      num_codes: W.

    Returns:
      [n, C + 1] int32 codes, all distinct.

    Raises:
      UserError: more than W items share all codes.
    """
    codes = np.asarray(codes, np.int32)
    order, starts = _runs(codes)
    sizes = np.diff(np.append(starts, len(codes)))
    if sizes.max() > num_codes:
        leaf = codes[order[starts[sizes.argmax()]]].tolist()
        raise UserError(
            f"{sizes.max()} items share the codes {leaf}; one more layer tells at most {num_codes} apart"
        )
    number = np.empty(len(codes), np.int32)
    number[order] = np.arange(len(codes)) - np.repeat(starts, sizes)
    return np.concatenate([codes, number[:, None]], axis=1)


def _colliding_groups(codes: np.ndarray) -> list[np.ndarray]:
    """The groups of items that share all codes but the last, if any two share the last too."""
    order, starts = _runs(codes[:, :-1])
    _, leaves = _runs(codes)
    leaves_per_group = np.diff(np.append(np.searchsorted(leaves, starts), leaves.size))
    sizes = np.diff(np.append(starts, len(codes)))
    groups = np.split(order, starts[1:])
    return [groups[g] for g in np.flatnonzero(leaves_per_group < sizes)]


def _runs(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts items [n] by codes; returns the order and the start of each run of equal codes."""
    n, c = codes.shape
    order = np.lexsort(codes.T[::-1]) if c else np.arange(n)
    ordered = codes[order]
    differs = np.any(ordered[1:] != ordered[:-1], axis=1)
    return order, np.flatnonzero(np.append(True, differs))
