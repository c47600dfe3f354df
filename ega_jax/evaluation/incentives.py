"""How far an auction is from truthful: Psi, and the shape of clicks against the bid (paper sec. 5).

Judged on the host in numpy float64: a regret is a small difference of money.
"""

import chex
import numpy as np
from jax.typing import ArrayLike


def psi(
    utility_truthful: ArrayLike, utility_misreport: ArrayLike, mask: ArrayLike
) -> dict[str, float]:
    """Regret relative to utility, over sessions and ads.

    The regret of an ad is what its best misreport gains, at least 0.

    Args:
      utility_truthful: `[D, A]` utility `(value - price) * click rate` of each ad in each session,
        currency per impression.
      utility_misreport: `[D, A, J]` the same when this ad alone reports something else.
      mask: `[D, A]` bool, the ads that count.

    Returns:
      `psi`: sum of regret / sum of utility; infinite where regret meets no utility.
      `psi_mean_ratio`: mean of regret / utility over the terms with utility above 0. The paper
        divides their sum by the number of sessions instead.
      `dropped`: how many terms that mean leaves out. Without terms all three are 0.

    Raises:
      ValueError: where a utility that counts is not finite.
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
        "psi_mean_ratio": float(ratio.mean()) if ratio.size else 0.0,
        "dropped": int((~paid).sum()),
    }


def _relative(regret: float, utility: float) -> float:
    """Their ratio: 0 where nothing is regretted, infinite where that is all there is."""
    if regret == 0:
        return 0.0
    return float(regret / utility) if utility > 0 else float("inf")


def jump_brackets(
    grid: ArrayLike, clicks: ArrayLike, num_jumps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The intervals of a bid grid in which clicks change most: where to bisect for a jump.

    Args:
      grid: `[..., G]` rising bids, currency per click.
      clicks: `[..., G]` click rate at each bid.
      num_jumps: intervals to return, at most G - 1.

    Returns:
      `[..., num_jumps]` float64 lower ends and upper ends, the largest change first and equal ones
      from the lowest bid; and bool, whether clicks change there at all.

    Raises:
      ValueError: where the grid has fewer intervals.
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
    """Whether an advertiser can lose clicks by bidding more.

    Args:
      clicks: `[..., G]` click rate at each bid of a rising grid.
      where: `[...]` bool, the advertisers that count.
      tolerance: largest fall below an earlier click rate that does not count.

    Returns:
      `[...]` bool, False where masked.
    """
    clicks, where = np.asarray(clicks, float), np.asarray(where, bool)
    chex.assert_shape(clicks, (*where.shape, None))
    fall = np.maximum.accumulate(clicks, axis=-1) - clicks
    return where & (fall > tolerance).any(-1)
