"""Outcomes of misreports: for each report of an advertiser, the allocation runs again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.auction.counterfactuals import (
    Counterfactuals,
    clicks_of,
    counterfactuals,
    for_every_slot,
)
from ega_jax.auction.pricing import prices
from ega_jax.auction.system import Allocation, Levers, PreparedRequest, System
from ega_jax.evaluation.incentives import jump_brackets
from ega_jax.mechanism import Mechanism
from ega_jax.payment.regret import rerun
from ega_jax.training.mesh import map_rows
from ega_jax.types import Request

MULTIPLES = np.arange(81) / 40.0  # Reports as multiples of the value: 0 and 80 in (0, 2].
NUM_JUMPS = 4  # Number of an ad's largest click jumps that are bisected.
NUM_BISECTIONS = 5  # Bisections of the interval around each jump.


@struct.dataclass
class Truthful:
    """The outcome of truthful reports, with the `A` ads whose misreports are tried."""

    allocation: Allocation  # [B, K].
    prices: dict[str, jax.Array]  # Rule -> [B, K] currency per click.
    ad: jax.Array  # [B, A] int32 candidates: the slots' ads (-1 if organic), then losing ads.
    value: jax.Array  # [B, A] float32 true value of a click, in currency.
    known: Counterfactuals  # Of these ads, [B, A].


@struct.dataclass
class Reported:
    """The outcome of a report for the ad that reports; leading axes `[...]`."""

    bid: jax.Array  # [...] float32 as reported.
    clicks: jax.Array  # [...] float32 pctr of the ad, 0 if it is not shown.
    price: dict[str, jax.Array]  # Rule -> [...] currency per click; no meaning if not shown.
    slot: jax.Array  # [...] int32 slot of the ad, -1 if it is not shown.
    item: jax.Array  # [..., K] int32 POI ids of the slate.
    creative: jax.Array  # [..., K] int32.
    is_ad: jax.Array  # [..., K] bool.


@jax.jit
def prepare_batch(system: System, request: Request) -> PreparedRequest:
    """Prepares a batch of requests; the result does not depend on bids and serves all reports."""
    return jax.vmap(system.prepare)(request)


def truthful(
    mechanism: Mechanism,
    prepared: PreparedRequest,
    bid: jax.Array,
    levers: Levers,
    num_losing: int,
) -> Truthful:
    """Allocates and prices a batch of requests, and picks the ads whose reports are tried.

    Args:
      mechanism: the mechanism to measure.
      prepared: the batch, from `prepare_batch`.
      bid: `[B, N]` float32 currency per click, the true values.
      levers: its run-time settings.
      num_losing: the largest number of ads outside the slate that misreport; those of the highest
        score, bid times quality, are taken.
    """
    m = mechanism
    return _truthful(m.system, m.networks, m.pricing, prepared, bid, levers, num_losing)


@functools.partial(jax.jit, static_argnames=("pricing", "num_losing"))
def _truthful(system, networks, pricing, prepared, bid, levers, num_losing) -> Truthful:
    def one(x: tuple[PreparedRequest, jax.Array]) -> Truthful:
        prepared, bid = x
        allocation, menu = system.allocate(prepared, bid, levers)
        shown = jnp.isin(jnp.arange(bid.shape[0]), allocation.candidate)
        score = jnp.where(prepared.is_ad & ~shown, bid * prepared.quality, -1.0)
        best, losing = jax.lax.top_k(score, min(num_losing, score.size))
        winning = jnp.where(allocation.is_ad, allocation.candidate, -1)
        ad = jnp.concatenate([winning, jnp.where(best >= 0, losing, -1)])
        known, _, _ = counterfactuals(system, pricing.probes, prepared, bid, levers, ad, menu)
        of_slots = jax.tree.map(lambda x: x[: winning.size], known)
        return Truthful(
            allocation=allocation,
            prices=prices(networks, pricing, prepared, bid, levers, allocation, menu, of_slots),
            ad=ad,
            value=jnp.where(ad >= 0, bid[ad], 0.0),
            known=known,
        )

    return map_rows(one, (prepared, bid))


@functools.partial(jax.jit, static_argnames="pricing")
def _report(system, networks, pricing, prepared, bid, levers, fair, reports) -> Reported:
    """Returns outcomes `[B, A, J]` of reports `[B, A, J]` in currency."""

    def one(x) -> Reported:
        prepared, bid, ads, known, reports = x
        of_each = jax.tree.map(lambda x: jnp.repeat(x, reports.shape[1], axis=0), known)

        def outcomes_of(bids: jax.Array, ads: jax.Array) -> Reported:
            allocations, menus = system.allocate_each(prepared, bids, levers)
            return jax.vmap(outcome)(bids, ads, allocations, menus, of_each)

        def outcome(bid, ad, allocation, menu, known) -> Reported:
            at_every_slot = for_every_slot(known, allocation.candidate.shape[0])
            every = prices(
                networks, pricing, prepared, bid, levers, allocation, menu, at_every_slot
            )
            slot = jnp.argmax(allocation.candidate == ad)
            shown = allocation.candidate[slot] == ad
            return Reported(
                bid=bid[ad],
                clicks=clicks_of(allocation, ad),
                price={rule: price[slot] for rule, price in every.items()},
                slot=jnp.where(shown, slot, -1),
                item=allocation.item,
                creative=allocation.creative,
                is_ad=allocation.is_ad,
            )

        return rerun(outcomes_of, bid, ads, reports)

    return map_rows(one, (prepared, bid, fair.ad, fair.known, reports))


def explore(
    mechanism: Mechanism,
    prepared: PreparedRequest,
    bid: jax.Array,
    levers: Levers,
    fair: Truthful,
) -> Reported:
    """Tries each ad's reports: 81 multiples of its value, then bisections of its largest jumps.

    Args:
      mechanism: the mechanism to measure.
      prepared: a batch, from `prepare_batch`.
      bid: `[B, N]` float32 currency per click, the true values.
      levers: its run-time settings.
      fair: the outcome of truthful reports, from `truthful`.

    Returns:
      Outcomes `[B, A, J]` on the host: the `MULTIPLES` first, then the bisections.
    """
    m = mechanism

    def run(reports: np.ndarray) -> Reported:
        asked = prepared, bid, levers, fair, np.float32(reports)
        return jax.device_get(_report(m.system, m.networks, m.pricing, *asked))

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
    """Returns clicks `[B, A, J']` at reports `bid`, which are among those tried."""
    place = np.argmin(np.abs(tried.bid[..., None, :] - bid[..., None]), axis=-1)
    return np.take_along_axis(np.asarray(tried.clicks), place, axis=-1)
