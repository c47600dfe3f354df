"""Comparing systems that served the same sessions: lifts, value at equal clicks, intervals.

The sums over sessions that these figures are made of are resampled together, so that the intervals
of one market hold the draw of sessions, paired.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ega_jax.evaluation.serving import Outcomes

RESAMPLES = 999  # Of the sessions, for an interval.
_UNDEFINED = -1e9  # Stands for a statistic that is not defined, below any lift in per cent.
Statistic = Callable[[Sequence[Outcomes]], np.ndarray]


def lift(metric: str) -> Statistic:
    """Returns a statistic of two systems: the lift of the first over the second, in per cent."""

    def of(totals: Sequence[Outcomes]) -> np.ndarray:
        own, other = (total.figures()[metric] for total in totals)
        return 100 * (_over(own, other) - 1)

    return of


def frontier_value(totals: Sequence[Outcomes]) -> np.ndarray:
    """The value of a frontier at a system's CTR-poi, per 1000 impressions.

    Args:
      totals: of the system, then of the points of the frontier.
    """
    other, *points = (total.figures() for total in totals)
    value, clicks = (np.stack([p[name] for p in points], -1) for name in ("value", "ctr_poi"))
    found = np.vectorize(value_at_clicks, signature="(p),(p),()->()")
    return found(value, clicks, other["ctr_poi"])


def value_lift_at_clicks(totals: Sequence[Outcomes]) -> np.ndarray:
    """The lift of `frontier_value` over that system's value, in per cent."""
    return 100 * (_over(frontier_value(totals), totals[0].figures()["value"]) - 1)


def value_at_clicks(value: np.ndarray, clicks: np.ndarray, target: float) -> float:
    """The value of a frontier at a click rate, linear between its efficient points.

    A point is efficient if no other has both more value and more clicks. Serving a share of the
    requests by each of two neighbours reaches all points between them.

    Args:
      value: `[P]` value of each point, in any order.
      clicks: `[P]` CTR-poi of each point.
      target: CTR-poi to reach at least.

    Returns:
      The value; that of the most valuable point if it has more clicks; NaN if no point has as many.

    Examples:
      >>> value_at_clicks(np.array([10.0, 8.0, 6.0]), np.array([0.04, 0.06, 0.05]), 0.05)
      9.0
    """
    if target > np.max(clicks):
        return float("nan")
    order = np.lexsort((value, clicks))
    best = np.maximum.accumulate(value[order][::-1])[::-1]  # With at least as many clicks.
    efficient = np.append(best[:-1] > best[1:], True)
    return float(np.interp(target, clicks[order][efficient], best[efficient]))


def measured(statistic: Statistic, outcomes: Sequence[Outcomes]) -> float:
    """The statistic of all sessions; each system's outcomes are of the same sessions `[D]`."""
    return float(statistic([each.total for each in outcomes]))


def bootstrap_interval(
    statistic: Statistic, outcomes: Sequence[Outcomes], seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a statistic by resampling the sessions, the same for all systems.

    The ends are the 25th lowest and the 25th highest of 999 resamples. A resample in which the
    statistic is not defined, as where no point of a frontier has as many clicks, counts as lower
    than all others. An end in such resamples is -infinity.
    """

    def of_resamples(rows: np.ndarray, axis: int) -> np.ndarray:
        found = statistic([each.of(rows).total for each in outcomes])
        return np.where(np.isnan(found), _UNDEFINED, found)

    resampled = stats.bootstrap(
        (np.arange(len(outcomes[0].value)),),
        of_resamples,
        n_resamples=RESAMPLES,
        batch=50,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution
    rank = (RESAMPLES + 1) // 40
    ends = np.sort(resampled)[[rank - 1, -rank]]
    low, high = (-np.inf if end == _UNDEFINED else float(end) for end in ends)
    return low, high


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % Student interval of a mean over markets; NaN with fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - reach), float(np.mean(values) + reach)


def lift_text(row: Mapping[str, Any]) -> str:
    """Formats `mean`, `low` and `high` of a lift in per cent; without ends if they are NaN."""
    if np.isnan(row["mean"]):
        return "undefined"
    ends = "" if np.isnan(row["low"]) else f" ({row['low']:+.1f} to {row['high']:+.1f})"
    return f"{row['mean']:+.1f} %{ends}"


def _over(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The ratio; NaN where `other` is 0."""
    return np.divide(own, other, out=np.full(np.shape(own), np.nan), where=np.asarray(other) != 0)
