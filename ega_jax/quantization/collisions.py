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


def resolve_beside(
    known: np.ndarray, codes: np.ndarray, left: np.ndarray, codebook: np.ndarray
) -> np.ndarray:
    """Gives new items distinct codes in the last layer; the codes of known items do not change.

    This is `resolve` restricted to codewords that no known item with the same prefix uses. If these
    do not suffice, the remaining new items keep their nearest code and collide.

    Args:
      known: [P, C] int codes of the known items.
      codes: [n, C] int nearest codes of the new items.
      left: [n, L] residuals of the new items that the last layer quantises.
      codebook: [W, L] codewords of the last layer.

    Returns:
      [n, C] int32 codes.
    """
    resolved, num_codes = np.array(codes, np.int32), len(codebook)
    known_prefix, prefix = (_numbers(x[:, :-1], num_codes) for x in (known, resolved))
    norm = np.sum(codebook**2, axis=-1)
    for number in np.unique(prefix):
        items = np.flatnonzero(prefix == number)
        taken = known[known_prefix == number, -1]
        free = np.setdiff1d(np.arange(num_codes), taken)
        last = resolved[items, -1]
        if not np.isin(last, taken).any() and np.unique(last).size == last.size:
            continue
        given = left[items]
        distance = np.sum(given**2, axis=-1)[:, None] - 2 * given @ codebook.T + norm
        rows, columns = linear_sum_assignment(distance[:, free])
        resolved[items[rows], -1] = free[columns]
    return resolved


def disambiguate(codes: np.ndarray, num_codes: int, known: np.ndarray | None = None) -> np.ndarray:
    """Adds a layer that numbers the items with equal codes, so that all codes are distinct.

    Args:
      codes: [n, C] int.
      num_codes: W.
      known: [P, C + 1] int codes of items already numbered; new numbers continue theirs.

    Returns:
      [n, C + 1] int32 codes, all distinct.

    Raises:
      UserError: more than W items share all codes.
    """
    codes = np.asarray(codes, np.int32)
    known = np.empty((0, codes.shape[1] + 1), np.int32) if known is None else known
    every = np.concatenate([known[:, :-1], codes])  # Known items sort before new ones.
    order, starts = _runs(every)
    sizes = np.diff(np.append(starts, len(every)))
    if sizes.max() > num_codes:
        leaf = every[order[starts[sizes.argmax()]]].tolist()
        raise UserError(
            f"{sizes.max()} items share the codes {leaf}; one more layer tells {num_codes} apart"
        )
    number = np.empty(len(every), np.int32)
    number[order] = np.arange(len(every)) - np.repeat(starts, sizes)
    return np.concatenate([codes, number[len(known) :, None]], axis=1)


def _numbers(codes: np.ndarray, num_codes: int) -> np.ndarray:
    """Encodes each row of codes [n, C] as one integer [n]; equal rows give equal integers."""
    return codes.astype(np.int64) @ num_codes ** np.arange(codes.shape[1], dtype=np.int64)


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
