"""Decomposing a system's loss of revenue by stage, relative to the best slate.

Each slate of the chain is the best by the truth under more constraints than the one before: any
ads; the recalled ads; the ranked ads; the ads that the auction lists, in its order; the shown slate
with the best creatives; the shown slate with its own creatives; and that slate at its prices
instead of its bids. The difference between neighbours is the loss at that stage, given the stages
before it. Each search also starts from the next slate of the chain, so values never increase along
the chain.
"""

import functools
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from ega_jax.auction.system import Funnel, Levers, System
from ega_jax.errors import UserError
from ega_jax.evaluation.attainable import Sample, best_creatives, best_slates
from ega_jax.mechanism import Mechanism
from ega_jax.types import AnyRequest, BookRequest, Request, Slate


def decompose(mechanism: Mechanism, samples: Iterable[Sample]) -> dict[str, float]:
    """Measures the chain of a system on requests whose bids are the true values.

    Args:
      mechanism: the system with its prices.
      samples: batches of requests with their true click probabilities.

    Returns:
      Expected currency per request, in this order. `attainable`: the best slate of all ads. For a
      cascade, `recalled`, `ranked` and `listed`: the best slates of the ads that these stages keep.
      `placed`: the system's slate with the best creatives. `shown`: the system's slate. `paid`: its
      revenue. All but the last value clicks at their bids.

    Raises:
      UserError: the system keeps a least gap between ads; the search has no such rule.
    """
    chains = [_chain(mechanism, sample) for sample in samples]
    every = lambda name: np.concatenate([chain[name] for chain in chains])
    return {name: float(every(name).mean()) for name in chains[0]}


def losses(chain: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Computes the value and the loss of each slate of a chain, as shares of the first value.

    Returns:
      By name: `currency`; `share`, of the first; `lost`, the share lost since the one before.
    """
    values = list(chain.values())
    share = lambda value: value / values[0] if values[0] else 0.0
    return {
        name: {"currency": value, "share": share(value), "lost": share(before - value)}
        for name, value, before in zip(chain, values, [values[0], *values], strict=False)
    }


def _chain(mechanism: Mechanism, sample: Sample) -> dict[str, np.ndarray]:
    """Returns the chain of each request, `[D]` per entry."""
    slate: Slate = jax.tree.map(np.asarray, mechanism.allocate(sample.asked))
    candidate, everyone = _candidates(sample.request, slate), np.arange(len(slate.items))
    num_slots = candidate.shape[1]
    if mechanism.levers.min_gap > 0:
        raise UserError("the best slates are searched without a least gap between ads")
    own = candidate, np.asarray(slate.creatives)
    found = best_creatives(sample, *own)
    chain = {
        "paid": np.sum(sample.clicks(everyone, *own) * slate.price_per_click, axis=-1),
        "shown": sample.values(everyone, *own),
        "placed": found.value,
    }
    most = int(min(mechanism.levers.max_ads, num_slots))
    search = functools.partial(best_slates, sample, num_slots, max_ads=most)
    allowed = np.asarray(sample.request.bid >= mechanism.levers.reserve)
    funnel = _funnels(mechanism.system, sample.asked, mechanism.levers)
    if funnel is not None:
        funnel = jax.tree.map(
            lambda x: _in_list(mechanism.system, sample.asked, np.asarray(x)), funnel
        )
        number = np.arange(allowed.shape[1])[:, None]
        kept = lambda ads: allowed & (number == ads[:, None]).any(-1)
        found = search(kept(funnel.ranked), funnel.listed, found)
        chain["listed"] = found.value
        for stage in ("ranked", "recalled"):
            found = search(kept(getattr(funnel, stage)), start=found)
            chain[stage] = found.value
    chain["attainable"] = search(allowed, start=found).value
    return dict(reversed(chain.items()))


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


def _candidates(request: Request, slate: Slate) -> np.ndarray:
    """Returns the candidates `[D, K]` that slates show, -1 where a slot is empty."""
    item, is_ad = (np.asarray(x)[:, None] for x in (request.item, request.is_ad))
    same = (slate.items[..., None] == item) & (slate.is_ad[..., None] == is_ad)
    return np.where(slate.items >= 0, same.argmax(-1), -1)
