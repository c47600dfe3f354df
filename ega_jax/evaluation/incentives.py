"""Incentive compatibility: Psi, and jumps and monotonicity of clicks in the bid (paper sec. 5).

Computed on the host in numpy float64, because a regret is a small difference of large amounts.
"""

import chex
import numpy as np
from jax.typing import ArrayLike


def psi(
    utility_truthful: ArrayLike, utility_misreport: ArrayLike, mask: ArrayLike
) -> dict[str, float]:
    """Computes regret relative to utility, over sessions and ads.

    The regret of an ad is the utility gain of its best misreport, at least 0.

    Args:
      utility_truthful: `[D, A]` utility `(value - price) * click rate` of each ad in each session,
        currency per impression.
      utility_misreport: `[D, A, J]` the same if only this ad misreports.
      mask: `[D, A]` bool, the ads that count.

    Returns:
      `psi`: sum of regret / sum of utility; infinite if there is regret and the sum of utility is
        not above 0.
      `psi_paper`: the sum of regret / utility over ads with utility above 0, divided by the number
        of sessions `D` (paper sec. 5).
      `psi_mean_ratio`: the same divided by the number of these ads.
      `dropped`: the number of ads that these sums leave out. If no ad counts, all are 0.

    Raises:
      ValueError: a utility that counts is not finite.
    """
    truthful, misreport = np.asarray(utility_truthful, float), np.asarray(utility_misreport, float)
    mask = np.asarray(mask, bool)
    chex.assert_equal_shape([truthful, mask])
    chex.assert_shape(misreport, (*mask.shape, None))
    utility, lying = truthful[mask], misreport[mask]
    if not (np.isfinite(utility).all() and np.isfinite(lying).all()):
        raise ValueError("a utility that counts is NaN or infinite")
    regret = np.maximum(lying.max(-1, initial=-np.inf) - utility, 0.0)
    paid = utility > 0
    ratio = regret[paid] / utility[paid]
    return {
        "psi": _relative(regret.sum(), utility.sum()),
        "psi_paper": float(ratio.sum() / max(len(mask), 1)),
        "psi_mean_ratio": float(ratio.mean()) if ratio.size else 0.0,
        "dropped": int((~paid).sum()),
    }


def _relative(regret: float, utility: float) -> float:
    """Returns regret / utility: 0 if regret is 0, else infinite if utility is not above 0."""
    if regret == 0:
        return 0.0
    return float(regret / utility) if utility > 0 else float("inf")


def jump_brackets(
    grid: ArrayLike, clicks: ArrayLike, num_jumps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the intervals of a bid grid in which clicks change most, to be bisected.

    Args:
      grid: `[..., G]` increasing bids, currency per click.
      clicks: `[..., G]` click rate at each bid.
      num_jumps: the number of intervals to return, at most G - 1.

    Returns:
      `[..., num_jumps]` float64 lower ends and upper ends, ordered by decreasing change, ties by
      the lower bid; and bool, whether clicks change in the interval.

    Raises:
      ValueError: the grid has fewer intervals than `num_jumps`.
    """
    grid, clicks = np.asarray(grid, float), np.asarray(clicks, float)
    chex.assert_equal_shape([grid, clicks])
    if num_jumps > grid.shape[-1] - 1:
        raise ValueError(
            f"{num_jumps} jumps need at least {num_jumps} intervals, got {grid.shape[-1] - 1}"
        )
    change = np.abs(np.diff(clicks))
    largest = np.argsort(-change, stable=True)[..., :num_jumps]
    low, high, change = (
        np.take_along_axis(value, largest, -1) for value in (grid[..., :-1], grid[..., 1:], change)
    )
    return low, high, change > 0


def non_monotone(clicks: ArrayLike, where: ArrayLike, tolerance: float) -> np.ndarray:
    """Returns whether an advertiser can lose clicks by bidding more.

    Args:
      clicks: `[..., G]` click rate at each bid of an increasing grid.
      where: `[...]` bool, the advertisers that count.
      tolerance: the largest decrease below an earlier click rate that is ignored.

    Returns:
      `[...]` bool, False where masked.
    """
    clicks, where = np.asarray(clicks, float), np.asarray(where, bool)
    chex.assert_shape(clicks, (*where.shape, None))
    fall = np.maximum.accumulate(clicks, axis=-1) - clicks
    return where & (fall > tolerance).any(-1)
