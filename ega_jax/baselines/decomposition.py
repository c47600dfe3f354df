"""Where a system loses revenue, in shares of what could be attained.

A chain of slates, each the best on truth with fewer freedoms than the one before: any ads, the ads
that recall lets through, the ads that the auction lists in its order, the slate that is shown with
the best creatives, with its own, and at its own prices instead of its bids. What is lost from one
to the next is the loss at that stage, given the stages before it. Each search also starts from the
next one's slate, so that no slate is worth less than the next.
"""

import functools
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from ega_jax.auction.system import Funnel, Levers, System
from ega_jax.errors import UserError
from ega_jax.evaluation.attainable import Sample, best_creatives, best_slates
from ega_jax.mechanism import Mechanism
from ega_jax.types import Request, Slate


def decompose(mechanism: Mechanism, samples: Iterable[Sample]) -> dict[str, float]:
    """Measures the chain of a system on requests whose bids are the true values.

    Args:
      mechanism: of the system.
      samples: batches of requests with their truth.

    Returns:
      Expected currency per request of the best slate of all ads, `attainable`; of a cascade, of
      the best of those that are `recalled` and of those that are `listed`, in that order; of the
      system's own slate with the best creatives, `placed`, and as `shown`; and what is `paid`
      for it. All but the last count clicks at their bids.

    Raises:
      UserError: the system limits the ads of a slate, which the search does not.
    """
    chains = [_chain(mechanism, sample) for sample in samples]
    every = lambda name: np.concatenate([chain[name] for chain in chains])
    return {name: float(every(name).mean()) for name in chains[0]}


def losses(chain: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What each slate of a chain is worth and what is lost at it, as shares of the first.

    Returns:
      By name `currency`, `share` of the first, and the share that is `lost` since the one before.
    """
    values = list(chain.values())
    share = lambda value: value / values[0] if values[0] else 0.0
    return {
        name: {"currency": value, "share": share(value), "lost": share(before - value)}
        for name, value, before in zip(chain, values, [values[0], *values], strict=False)
    }


def _chain(mechanism: Mechanism, sample: Sample) -> dict[str, np.ndarray]:
    """The chain of each request, `[D]` each."""
    slate: Slate = jax.tree.map(np.asarray, mechanism.allocate(sample.request))
    candidate, everyone = _candidates(sample.request, slate), np.arange(len(slate.items))
    num_slots = candidate.shape[1]
    if mechanism.levers.max_ads < num_slots or mechanism.levers.min_gap > 0:
        raise UserError("the best slates are searched without limits on the ads of a slate")
    own = candidate, np.asarray(slate.creatives)
    found = best_creatives(sample, *own)
    chain = {
        "paid": np.sum(sample.clicks(everyone, *own) * slate.price_per_click, axis=-1),
        "shown": sample.values(everyone, *own),
        "placed": found.value,
    }
    search = functools.partial(best_slates, sample, num_slots)
    allowed = np.asarray(sample.request.bid >= mechanism.levers.reserve)
    funnel = _funnels(mechanism.system, sample.request, mechanism.levers)
    if funnel is not None:
        recalled, listed = np.asarray(funnel.recalled), np.asarray(funnel.listed)
        found = search(allowed & recalled, listed, found)
        chain["listed"] = found.value
        found = search(allowed & recalled, start=found)
        chain["recalled"] = found.value
    chain["attainable"] = search(allowed, start=found).value
    return dict(reversed(chain.items()))


@jax.jit
def _funnels(system: System, request: Request, levers: Levers) -> Funnel | None:
    """What the stages let through of each request, `[D, ...]`."""

    def one(request: Request) -> Funnel | None:
        return system.funnel(system.prepare(request), request.bid, levers)

    return jax.vmap(one)(request)


def _candidates(request: Request, slate: Slate) -> np.ndarray:
    """The candidates `[D, K]` that slates show, -1 where a slot is empty."""
    item, is_ad = (np.asarray(x)[:, None] for x in (request.item, request.is_ad))
    same = (slate.items[..., None] == item) & (slate.is_ad[..., None] == is_ad)
    return np.where(slate.items >= 0, same.argmax(-1), -1)
