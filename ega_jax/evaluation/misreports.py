"""What every report of an advertiser would lead to: the allocation, run again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.auction.counterfactuals import Elsewhere, clicks_of, look_elsewhere
from ega_jax.auction.pricing import for_every_slot, prices
from ega_jax.auction.system import Allocation, Levers, Offer, allocate, allocate_each, prepare
from ega_jax.evaluation.incentives import jump_brackets
from ega_jax.mechanism import Mechanism
from ega_jax.payment.regret import rerun
from ega_jax.training.mesh import map_rows
from ega_jax.types import Request

MULTIPLES = np.arange(81) / 40.0  # Reports as multiples of the value: 0 and 80 in (0, 2].
NUM_JUMPS = 4  # Largest jumps of an ad's clicks that are looked at closely,
NUM_BISECTIONS = 5  # and how often the interval around a jump is halved.


@struct.dataclass
class Truthful:
    """What happens when everyone reports the truth; `A` ads are followed: the slate's, losers."""

    allocation: Allocation  # Of each request, [B, K].
    prices: jax.Array  # [B, rules, K] currency per click.
    ad: jax.Array  # [B, A] int32 candidates: those of the slots (-1 where organic), then losers.
    value: jax.Array  # [B, A] float32 true value of a click, in currency.
    elsewhere: Elsewhere  # Of the ads that are followed, [B, A].


@struct.dataclass
class Reported:
    """What a report leads to for the ad that reports; leading axes `[...]`."""

    bid: jax.Array  # [...] float32 as reported.
    clicks: jax.Array  # [...] float32 pctr of the ad, 0 where it is not shown.
    price: jax.Array  # [..., rules] currency per click; means nothing where not shown.
    slot: jax.Array  # [...] int32 where the ad is, -1 where not shown.
    item: jax.Array  # [..., K] int32 POI ids of the slate.
    creative: jax.Array  # [..., K] int32.
    is_ad: jax.Array  # [..., K] bool.


def offers_of(mechanism: Mechanism, request: Request) -> Offer:
    """What no report changes of a batch of requests: prepared once, for all that is tried."""
    return _offers(mechanism.models, mechanism.config, request)


@functools.partial(jax.jit, static_argnames="config")
def _offers(models, config, request) -> Offer:
    return jax.vmap(lambda one: prepare(models, config, one))(request)


def truthful(
    mechanism: Mechanism, levers: Levers, offer: Offer, bid: jax.Array, num_losing: int
) -> Truthful:
    """Allocates and prices a batch of requests, and picks the ads whose reports are tried.

    Args:
      mechanism: what is judged.
      levers: its run-time settings.
      offer: of the batch, from `offers_of`.
      bid: `[B, N]` float32 currency per click, the true values.
      num_losing: how many ads outside the slate are followed at most, those of the highest score.
    """
    m = mechanism
    return _truthful(m.models, m.networks, m.config, m.pricing, levers, offer, bid, num_losing)


@functools.partial(jax.jit, static_argnames=("config", "pricing", "num_losing"))
def _truthful(models, networks, config, pricing, levers, offer, bid, num_losing) -> Truthful:
    def one(x: tuple[Offer, jax.Array]) -> Truthful:
        offer, bid = x
        allocation, menu = allocate(models, config, offer, bid, levers)
        shown = jnp.isin(jnp.arange(bid.shape[0]), allocation.candidate)
        score = jnp.where(offer.is_ad & ~shown, bid * offer.quality, -1.0)
        best, losing = jax.lax.top_k(score, min(num_losing, score.size))
        winning = jnp.where(allocation.is_ad, allocation.candidate, -1)
        ad = jnp.concatenate([winning, jnp.where(best >= 0, losing, -1)])
        elsewhere, _, _ = look_elsewhere(
            models, config, pricing.probes, levers, offer, bid, ad, menu
        )
        of_slots = jax.tree.map(lambda x: x[: winning.size], elsewhere)
        return Truthful(
            allocation=allocation,
            prices=prices(networks, pricing, levers, offer, bid, allocation, menu, of_slots),
            ad=ad,
            value=jnp.where(ad >= 0, bid[ad], 0.0),
            elsewhere=elsewhere,
        )

    return map_rows(one, (offer, bid))


@functools.partial(jax.jit, static_argnames=("config", "pricing"))
def _report(models, networks, config, pricing, levers, offer, bid, fair, reports) -> Reported:
    """Outcomes `[B, A, J]` of reports `[B, A, J]` in currency."""

    def one(x) -> Reported:
        offer, bid, ads, elsewhere, reports = x
        of_each = jax.tree.map(lambda x: jnp.repeat(x, reports.shape[1], axis=0), elsewhere)

        def outcomes_of(bids: jax.Array, ads: jax.Array) -> Reported:
            found = allocate_each(models, config, offer, bids, levers)
            return jax.vmap(outcome)(bids, ads, *found, of_each)

        def outcome(bid, ad, allocation, menu, elsewhere) -> Reported:
            known = for_every_slot(elsewhere, allocation)
            every = prices(networks, pricing, levers, offer, bid, allocation, menu, known)
            slot = jnp.argmax(allocation.candidate == ad)
            shown = allocation.candidate[slot] == ad
            return Reported(
                bid=bid[ad],
                clicks=clicks_of(allocation, ad),
                price=every[:, slot],
                slot=jnp.where(shown, slot, -1),
                item=allocation.item,
                creative=allocation.creative,
                is_ad=allocation.is_ad,
            )

        return rerun(outcomes_of, bid, ads, reports)

    return map_rows(one, (offer, bid, fair.ad, fair.elsewhere, reports))


def explore(
    mechanism: Mechanism, levers: Levers, offer: Offer, bid: jax.Array, fair: Truthful
) -> Reported:
    """Tries every ad's reports: 81 multiples of its value, and closely around the largest jumps.

    Args:
      mechanism: what is judged.
      levers: its run-time settings.
      offer: of a batch, from `offers_of`.
      bid: `[B, N]` float32 currency per click, the true values.
      fair: from `truthful`.

    Returns:
      Outcomes `[B, A, J]` on the host: those of `MULTIPLES` first, then those around jumps.
    """
    m = mechanism

    def run(reports: np.ndarray) -> Reported:
        parts = m.models, m.networks, m.config, m.pricing, levers
        return jax.device_get(_report(*parts, offer, bid, fair, np.float32(reports)))

    tried = run(MULTIPLES * np.asarray(fair.value)[..., None])
    low, high, _ = jump_brackets(tried.bid, tried.clicks, NUM_JUMPS)
    below, above = _clicks_at(tried, low), _clicks_at(tried, high)
    closer = []
    for _ in range(NUM_BISECTIONS):
        middle = run((low + high) / 2)
        closer.append(middle)
        like_low = np.abs(middle.clicks - below) <= np.abs(middle.clicks - above)
        low = np.where(like_low, middle.bid, low)
        high = np.where(like_low, high, middle.bid)
    return jax.tree.map(lambda *x: np.concatenate(x, axis=2), tried, *closer)


def _clicks_at(tried: Reported, bid: np.ndarray) -> np.ndarray:
    """Clicks `[B, A, J']` of reports `bid` that are among those tried."""
    place = np.argmin(np.abs(tried.bid[..., None, :] - bid[..., None]), axis=-1)
    return np.take_along_axis(np.asarray(tried.clicks), place, axis=-1)
