"""Ceilings of a system's value: the best slates of all, of what can be seen, and of its menu.

All are valued by the truth. The best slate of all ads is found by a search that knows the truth.
The best slate by what can be seen is found by the same search on the click probabilities of a
reward model. The best slate of a menu is the best of those from which the system chose. The first
two depend on a system only through its limits and its own slates, from which the search also
starts. So most of their work is shared between systems.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from ega_jax.auction.system import Levers, Menu
from ega_jax.evaluation.attainable import Attainable, best_slates, improved
from ega_jax.evaluation.samples import Sample
from ega_jax.evaluation.slate_rules import Array


@dataclasses.dataclass(frozen=True)
class Limits:
    """The rules of a system that bind every slate."""

    max_ads: int
    reserve: float  # The least bid, in currency.

    @classmethod
    def of(cls, levers: Levers, num_slots: int) -> "Limits":
        """Reads the limits from a system's levers."""
        return cls(int(min(levers.max_ads, num_slots)), float(levers.reserve))

    def allowed(self, sample: Sample) -> np.ndarray:
        """Returns which candidates may be shown as ads, `[D, N]` bool."""
        return np.asarray(sample.request.bid >= self.reserve)


Search = Callable[[Limits, Sequence[Attainable]], Attainable]


def search_of(sample: Sample, num_tried: int | None = None) -> Search:
    """Returns a search for the best slates of a sample by its judge.

    The search takes limits and slates to start from besides its own initial slates. The part that
    starts from its own is done once per limits.

    Args:
      sample: the requests, and the judge of their slates.
      num_tried: the search tries so many ads of the highest value alone, and so many of the fewest
        clicks alone, which take the fewest from their neighbours; default: all ads.
    """

    @functools.cache
    def tried(limits: Limits) -> np.ndarray:
        allowed = limits.allowed(sample)
        return allowed if num_tried is None else _most_promising(sample, allowed, num_tried)

    @functools.cache
    def own_part(limits: Limits) -> Attainable:
        return best_slates(sample, tried(limits), max_ads=limits.max_ads)

    def search(limits: Limits, starts: Sequence[Attainable]) -> Attainable:
        found, number = own_part(limits), np.arange(sample.request.item.shape[1])[:, None]
        for start in starts:
            shown = (number == start.candidate[:, None]).any(-1)
            allowed = limits.allowed(sample) & (tried(limits) | shown)
            found = found.or_better(improved(sample, start, allowed, max_ads=limits.max_ads))
        return found

    return search


def _most_promising(sample: Sample, allowed: np.ndarray, number: int) -> np.ndarray:
    """Returns which ads the search tries, `[D, N]` bool; see `search_of`."""
    ads, kept = allowed & sample.request.is_ad, np.zeros(allowed.shape, bool)
    clicks = np.where(sample.creatives >= 0, sample.clicks_alone, np.inf).min(-1)
    for rank in (-sample.worth_alone, clicks):
        first = np.argsort(np.where(ads, rank, np.inf), axis=1, kind="stable")[:, :number]
        np.put_along_axis(kept, first, True, axis=1)
    return ads & kept


def valued(sample: Sample, candidate: np.ndarray, creative: np.ndarray) -> Attainable:
    """Values slates `[D, K]` of candidates by the sample's judge."""
    return Attainable(
        candidate, creative, sample.values(np.arange(len(candidate)), candidate, creative)
    )


def best_of_menu(sample: Sample, menu: Menu, shown: Attainable) -> Attainable:
    """Finds the best slates of menus.

    Args:
      sample: the requests, and the judge of their slates.
      menu: their menus, `[D, ...]`; slates have the creatives with which the menu values them.
      shown: the slates shown, which may have other creatives; they belong to the menu too.
    """
    where, creative = np.asarray(menu.where), np.asarray(menu.creative)
    candidate = candidates(sample, menu.item, menu.is_ad)
    values = np.full(where.shape, -np.inf)
    values[where] = sample.values(np.nonzero(where)[0], candidate[where], creative[where])
    best, everyone = values.argmax(1), np.arange(len(where))
    at = lambda x: x[everyone, best]
    return shown.or_better(Attainable(at(candidate), at(creative), at(values)))


def candidates(sample: Sample, item: Array, is_ad: Array) -> np.ndarray:
    """Returns the candidates that slates `[D, ..., K]` of POIs show, -1 where a slot is empty."""
    item, is_ad = np.asarray(item), np.asarray(is_ad)
    of_request = lambda x: np.asarray(x).reshape(len(item), *[1] * (item.ndim - 1), -1)
    same = item[..., None] == of_request(sample.request.item)
    same &= is_ad[..., None] == of_request(sample.request.is_ad)
    return np.where(item >= 0, same.argmax(-1), -1)
