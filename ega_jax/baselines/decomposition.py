"""Decomposing a system's loss of value by stage, relative to the best slate, with its ceilings.

Each slate of the chain is the best by the truth under more constraints than the one before: any
ads; the recalled ads; the ranked ads; the ads that the auction lists, in its order; the shown slate
with the best creatives; the shown slate with its own creatives; and that slate at its prices
instead of its bids. The difference between neighbours is the loss at that stage, given the stages
before it. Each search also starts from the next slate of the chain, so values never increase along
the chain.

Two ceilings stand beside the chain. `visible` is the slate that a reward model values most among
all ads: what a perfect search gets from what can be seen. `menu` is the best by the truth of the
slates from which the system chose: what a perfect choice gets from the system's own search. The
first search also starts from both, so neither is above `attainable`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from ega_jax.auction.system import Funnel, Levers, System
from ega_jax.baselines.ceilings import (
    Limits,
    Search,
    best_of_menu,
    candidates,
    search_of,
    valued,
)
from ega_jax.errors import UserError
from ega_jax.evaluation.attainable import Attainable, best_creatives, best_slates, improved
from ega_jax.evaluation.judges import SlateJudge
from ega_jax.evaluation.samples import Sample
from ega_jax.mechanism import Mechanism
from ega_jax.types import AnyRequest, BookRequest

CEILINGS = ("visible", "menu")  # Values beside the chain.
_TRIED = 32  # Ads of either kind that the search for `visible` tries; a model is slow to ask.


def decompose(
    mechanisms: Mapping[str, Mechanism],
    samples: Iterable[Sample],
    model: Callable[[Sample], SlateJudge] | None = None,
) -> dict[str, dict[str, float]]:
    """Measures the chains and the ceilings of systems on requests whose bids are the true values.

    Args:
      mechanisms: the systems with their prices, by name.
      samples: batches of requests, judged by the truth.
      model: gives a reward model's judge of a sample; by default, `visible` is left out.

    Returns:
      By system, expected currency per request, in this order. `attainable`: the best slate of all
      ads. For a cascade, `recalled`, `ranked` and `listed`: the best slates of the ads that these
      stages keep. `placed`: the system's slate with the best creatives. `shown`: the system's
      slate. `paid`: its revenue. Then the ceilings `visible` and `menu`. All but `paid` value
      clicks at their bids.

    Raises:
      UserError: a system keeps a least gap between ads; the search has no such rule.
    """
    for name, mechanism in mechanisms.items():
        if mechanism.levers.min_gap > 0:
            raise UserError(f"{name}: the best slates are searched without a least gap between ads")
    parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in mechanisms}
    for sample in samples:
        batch = _Batch.of(sample, model)
        for name, mechanism in mechanisms.items():
            parts[name].append(_values(mechanism, batch))
    mean = lambda values: float(np.concatenate(values).mean())
    return {
        name: {slate: mean([part[slate] for part in found]) for slate in found[0]}
        for name, found in parts.items()
    }


def losses(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Compares the slates of a chain and its ceilings with the first slate.

    Returns:
      By name: `currency`; `share`, of the first; and in the chain `lost`, the share lost since the
      slate before.
    """
    first = before = next(iter(values.values()))
    share = lambda value: value / first if first else 0.0
    found = {}
    for name, value in values.items():
        found[name] = {"currency": value, "share": share(value)}
        if name not in CEILINGS:
            found[name]["lost"] = share(before - value)
            before = value
    return found


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Requests with the searches that all systems share."""

    sample: Sample
    by_truth: Search
    by_model: Search | None

    @classmethod
    def of(cls, sample: Sample, model: Callable[[Sample], SlateJudge] | None) -> "_Batch":
        if model is None:
            return cls(sample, search_of(sample), None)
        judged = dataclasses.replace(sample, judge=model(sample))
        return cls(sample, search_of(sample), search_of(judged, _TRIED))


def _values(mechanism: Mechanism, batch: _Batch) -> dict[str, np.ndarray]:
    """Returns the chain and the ceilings of each request, `[D]` per entry."""
    sample = batch.sample
    limits = Limits.of(mechanism.levers, sample.num_slots)
    slate, menu = mechanism.allocate_with_menu(sample.asked)
    place = candidates(sample, slate.items, slate.is_ad), np.asarray(slate.creatives)
    shown, everyone = valued(sample, *place), np.arange(len(place[0]))
    ceilings = {"menu": best_of_menu(sample, menu, shown)}
    if batch.by_model is not None:
        seen = batch.by_model(limits, [shown])
        ceilings = {"visible": valued(sample, seen.candidate, seen.creative)} | ceilings
    chain = {"shown": shown, "placed": best_creatives(sample, *place)}
    chain |= _stages(mechanism, sample, limits, chain["placed"])
    first = [*chain.values()][-1]
    chain["attainable"] = batch.by_truth(limits, [first, *ceilings.values()])
    paid = np.sum(sample.clicks(everyone, *place) * np.asarray(slate.price_per_click), axis=-1)
    values = {name: found.value for name, found in reversed(chain.items())}
    return values | {"paid": paid} | {name: found.value for name, found in ceilings.items()}


def _stages(
    mechanism: Mechanism, sample: Sample, limits: Limits, placed: Attainable
) -> dict[str, Attainable]:
    """Returns the best slates of the ads that a cascade's stages keep, the last stage first."""
    found = _funnels(mechanism.system, sample.asked, mechanism.levers)
    if found is None:
        return {}
    in_list = lambda ads: _in_list(mechanism.system, sample.asked, np.asarray(ads))
    stages = found.recalled, found.ranked, found.listed
    recalled_ads, ranked_ads, listed_ads = map(in_list, stages)
    number = np.arange(sample.request.item.shape[1])[:, None]

    def best(ads: np.ndarray, start: Attainable, order: np.ndarray | None = None) -> Attainable:
        kept = limits.allowed(sample) & (number == ads[:, None]).any(-1)
        rules = kept, order, limits.max_ads
        return best_slates(sample, *rules).or_better(improved(sample, start, *rules))

    listed = best(ranked_ads, placed, listed_ads)
    ranked = best(ranked_ads, listed)
    return {"listed": listed, "ranked": ranked, "recalled": best(recalled_ads, ranked)}


@jax.jit
def _funnels(system: System, request: AnyRequest, levers: Levers) -> Funnel | None:
    """Returns the ads that the stages keep of each request, `[D, ...]`; `None` if not a cascade."""

    def one(request: AnyRequest) -> Funnel | None:
        return system.funnel(system.prepare(request, levers))

    return jax.vmap(one)(request)


def _in_list(system: System, asked: AnyRequest, ads: np.ndarray) -> np.ndarray:
    """The places `[D, ...]` of ads in the requests' lists, -1 for none."""
    if not isinstance(asked, BookRequest):
        return ads
    assert system.book is not None, "a request names a book, and the system has none"
    first = np.asarray(system.book.book_start)[asked.book]
    return np.where(ads >= 0, ads - first[:, None], -1)
