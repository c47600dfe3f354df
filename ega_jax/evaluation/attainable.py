"""The best slate of a request: a local search on click probabilities.

The value of a slate is the sum of bid times click probability, by the market's truth or by another
judge. A slate fills as many slots as it can, shows no item twice, and keeps the organic items in
upstream order. The search starts from several slates and repeatedly takes the best change of one
ad, one position or one creative, until no change gains. Its value is a lower bound of the best
slate's; on requests small enough to enumerate all slates, the two are equal in nearly all cases.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ega_jax.evaluation.samples import Sample
from ega_jax.evaluation.slate_rules import SlateRules, picked

_GAIN = 1e-6  # Least relative gain of a change; less is rounding.
_STARTS = (0.0, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0)  # Shares of ads in the initial slates. The first
_BY_WORTH = 3  # ones show the ads of the highest value alone, the others random ads.

Changes = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Attainable:
    """The best slates found for `D` requests."""

    candidate: np.ndarray  # [D, K] int, -1 where a slot is empty.
    creative: np.ndarray  # [D, K] int, -1 where none.
    value: np.ndarray  # [D] float64, sum of bid times click probability, in currency.

    def or_better(self, other: "Attainable") -> "Attainable":
        """Takes the slates of `other` in the requests where they are worth more."""
        is_worse = other.value > self.value
        taken = lambda own, others: np.where(is_worse[:, None], others, own)
        return Attainable(
            taken(self.candidate, other.candidate),
            taken(self.creative, other.creative),
            np.maximum(self.value, other.value),
        )


def best_slates(
    sample: Sample,
    allowed: np.ndarray,
    listed: np.ndarray | None = None,
    max_ads: int | None = None,
) -> Attainable:
    """Searches for the slate of highest value for each request.

    Args:
      sample: the requests, and the judge of their slates.
      allowed: `[D, N]` bool, the ads that may be shown.
      listed: `[D, L]` int candidates, -1 after the last: only these ads may be shown, in this
        order. Default: all allowed ads, in any order.
      max_ads: most ads in a slate; no limit by default.

    Returns:
      The slates, with the best creatives.
    """
    rules = SlateRules.of(sample.request, sample.num_slots, allowed, listed, max_ads)
    worth, everyone = sample.worth_alone, np.arange(len(allowed))
    any_order = np.random.default_rng(0).random((len(_STARTS) - _BY_WORTH, *worth.shape))
    orders = [worth] * _BY_WORTH + [*any_order]
    ads = [rules.first_ads(order, share) for order, share in zip(orders, _STARTS, strict=True)]
    slates = [rules.filled(everyone, shown) for shown in ads]
    wardrobes = best, plain = _wardrobes(sample)
    clothes = np.where(sample.request.is_ad, best, plain)
    creatives = [picked(clothes, everyone, slate, -1) for slate in slates]
    states = np.tile(everyone, len(slates)), np.concatenate(slates), np.concatenate(creatives)
    found = _climb(sample, *states, wardrobes, rules.changes)
    winner = found.value.reshape(len(slates), -1).argmax(0) * len(everyone) + everyone
    return Attainable(found.candidate[winner], found.creative[winner], found.value[winner])


def improved(
    sample: Sample,
    start: Attainable,
    allowed: np.ndarray,
    listed: np.ndarray | None = None,
    max_ads: int | None = None,
) -> Attainable:
    """Searches from given slates alone; see `best_slates`.

    Args:
      sample: the requests, and the judge of their slates.
      start: the initial slates; their values are not read.
      allowed: the ads that may be shown, as in `best_slates`.
      listed: their order, as in `best_slates`.
      max_ads: most ads in a slate; no limit by default.

    Returns:
      Slates that are worth at least as much as those of `start`.

    Raises:
      ValueError: an initial slate breaks a rule.
    """
    rules = SlateRules.of(sample.request, sample.num_slots, allowed, listed, max_ads)
    everyone = np.arange(len(allowed))
    if not rules.obeyed(everyone, start.candidate).all():
        raise ValueError("a slate to start from breaks the rules of the search")
    state = everyone, start.candidate, start.creative
    return _climb(sample, *state, _wardrobes(sample), rules.changes)


def best_creatives(sample: Sample, candidate: np.ndarray, creative: np.ndarray) -> Attainable:
    """Searches for the best creatives of slates `[D, K]` of candidates, from `creative`."""
    everyone = np.arange(len(candidate))
    return _climb(sample, everyone, candidate, creative, [], _no_change)


def _no_change(row: np.ndarray, slate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns no change, in the form of `SlateRules.changes`."""
    return slate[:, None][:, :0], np.zeros((len(row), 0), bool)


def _climb(
    sample: Sample,
    row: np.ndarray,
    slate: np.ndarray,
    creative: np.ndarray,
    wardrobes: Sequence[np.ndarray],
    changes: Changes,
) -> Attainable:
    """Applies the best change of each slate `[X, K]` or of one creative until none gains.

    A wardrobe `[D, N]` holds one creative per candidate; an item that is added to a slate is tried
    with its creative of each wardrobe. Of slates that have become the same, one goes on.
    """
    slate, creative = slate.copy(), creative.copy()
    value = sample.values(row, slate, creative)
    active = np.arange(len(row))
    while active.size:
        states = np.column_stack([row, slate, creative])[active]
        active = active[np.unique(states, axis=0, return_index=True)[1]]
        now = row[active], slate[active], creative[active]
        slates, creatives, where = _neighbours(sample, *now, wardrobes, changes)
        values = np.full(where.shape, -np.inf)
        of = row[active[np.nonzero(where)[0]]]
        values[where] = sample.values(of, slates[where], creatives[where])
        gains = np.flatnonzero(values.max(1) > value[active] * (1 + _GAIN))
        best, active = (gains, values.argmax(1)[gains]), active[gains]
        slate[active], creative[active], value[active] = slates[best], creatives[best], values[best]
    return Attainable(slate, creative, value)


def _neighbours(
    sample: Sample,
    row: np.ndarray,
    slate: np.ndarray,
    creative: np.ndarray,
    wardrobes: Sequence[np.ndarray],
    changes: Changes,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns slates `[X, V, K]` one change away, their creatives, and which are valid."""
    redressed, there = _redressed(sample, row, slate, creative)
    moved, is_legal = changes(row, slate)
    dressed = [_dressed(row, slate, creative, moved, wardrobe) for wardrobe in wardrobes]
    legal = [is_legal & (n == 0 or np.any(x != dressed[0], -1)) for n, x in enumerate(dressed)]
    kept = np.broadcast_to(slate[:, None], redressed.shape)
    return (
        np.concatenate([kept, *[moved] * len(wardrobes)], axis=1),
        np.concatenate([redressed, *dressed], axis=1),
        np.concatenate([there, *legal], axis=1),
    )


def _dressed(
    row: np.ndarray,
    slate: np.ndarray,
    creative: np.ndarray,
    moved: np.ndarray,
    wardrobe: np.ndarray,
) -> np.ndarray:
    """Returns creatives of slates `moved [X, V, K]`; added items take theirs from the wardrobe."""
    same = (moved[..., None] == slate[:, None, None]) & (moved >= 0)[..., None]
    brought = np.take_along_axis(creative[:, None], same.argmax(-1), -1)
    return np.where(same.any(-1), brought, picked(wardrobe, row, moved, -1))


def _redressed(
    sample: Sample, row: np.ndarray, slate: np.ndarray, creative: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns creatives `[X, K * M, K]` that differ in one slot, and whether each exists."""
    options = picked(sample.creatives, row, slate, -1)[..., None]
    here = np.eye(slate.shape[1], dtype=bool)[:, None]
    changed = np.where(here, options, creative[:, None, None])
    shape = len(row), -1, slate.shape[1]
    return changed.reshape(shape), (options >= 0).reshape(shape[:2])


def _wardrobes(sample: Sample) -> list[np.ndarray]:
    """Returns two wardrobes `[D, N]`: the creatives with the most and with the fewest clicks alone.

    A creative with few clicks takes the fewest clicks from its neighbours.
    """
    there, clicks = sample.creatives >= 0, sample.clicks_alone
    chosen = np.where(there, clicks, -1.0).argmax(-1), np.where(there, clicks, 2.0).argmin(-1)
    return [np.take_along_axis(sample.creatives, x[..., None], -1)[..., 0] for x in chosen]
