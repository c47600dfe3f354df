"""How well a ranker treats new ads: items that no training session shows (cold start)."""

import numpy as np
from flax import struct

from ega_jax.reward.calibration import auc

AGES = {"old": False, "new": True}
FOUND = 10  # Ads of the highest click rates, among which a clicked one is to be.


@struct.dataclass
class RankedAds:
    """Logged slates and ads for sale of `D` requests, with a ranker's click rates."""

    shown: np.ndarray  # [D, K] int32 POIs of the ads shown, -1 for other items and empty slots.
    clicked: np.ndarray  # [D, K] bool.
    shown_rate: np.ndarray  # [D, K] click rates, on any scale.
    poi: np.ndarray  # [D, A] int32 POIs of the ads for sale, -1 for none.
    bid: np.ndarray  # [D, A] float32 currency per click.
    rate: np.ndarray  # [D, A] click rates of the ads alone in the first slot.
    true_rate: np.ndarray | None  # [D, A] the true ones; None if unknown.


def by_age(ads: RankedAds, is_new: np.ndarray, shown: int) -> dict[str, float]:
    """Measures a ranker on old and on new ads apart.

    Args:
      ads: the ranked ads.
      is_new: `[P]` bool, the POIs that training has not seen.
      shown: the most ads of a slate.

    Returns:
      For each age, "old" and "new": `auc_AGE` of clicks on the ads shown; `recall@10_AGE`, the
      share of clicked ads that are among the ten ads of the book with the highest rates; and if
      the truth is known `value_AGE`, which is the true value of the ads of this age with the
      highest expected revenue by the ranker, over that of the best by the truth. Also
      `clicks_AGE`, the number of clicks. A figure without a click or an ad is NaN.
    """
    figures: dict[str, float] = {}
    for age, wanted in AGES.items():
        there = (ads.shown >= 0) & (is_new[ads.shown] == wanted)
        row, slot = np.nonzero(there & ads.clicked)
        figures |= {
            f"clicks_{age}": len(row),
            f"auc_{age}": auc(ads.shown_rate, ads.clicked, there) if len(row) else np.nan,
            f"recall@{FOUND}_{age}": _found(ads, row, ads.shown[row, slot]),
        }
        if ads.true_rate is not None:
            for_sale = (ads.poi >= 0) & (is_new[ads.poi] == wanted)
            figures[f"value_{age}"] = _value_kept(ads, for_sale, shown)
    return figures


def _found(ads: RankedAds, row: np.ndarray, poi: np.ndarray) -> float:
    """The share of POIs `[N]` of the requests `row` that rank high; ties are broken at random."""
    if not len(row):
        return np.nan
    is_it = ads.poi[row] == poi[:, None]
    rate = np.where(ads.poi[row] >= 0, ads.rate[row], -np.inf)
    own = np.max(rate, axis=1, where=is_it, initial=-np.inf)[:, None]
    before, tied = (rate > own).sum(axis=1), (rate == own).sum(axis=1)
    chance = np.clip((FOUND - before) / np.maximum(tied, 1), 0.0, 1.0)
    is_ranked = is_it.any(axis=1) & (tied > 0)  # NaN equals no rate.
    return float(np.mean(np.where(is_ranked, chance, 0.0)))


def _value_kept(ads: RankedAds, for_sale: np.ndarray, shown: int) -> float:
    """True value of the `shown` best ads by a ranker, of those `for_sale`, over the best."""
    assert ads.true_rate is not None
    value = np.where(for_sale, ads.bid * ads.true_rate, 0.0)
    guess = np.where(for_sale, ads.bid * ads.rate, -1.0)
    chosen = np.argsort(-guess, axis=1, kind="stable")[:, :shown]
    best = -np.sort(-value, axis=1)[:, :shown].sum()
    return float(np.take_along_axis(value, chosen, axis=1).sum() / best) if best > 0 else np.nan
