"""Outcomes of misreports: for each report of an advertiser, the allocation runs again."""

import dataclasses
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
from ega_jax.auction.pricing import PricingConfig, prices
from ega_jax.auction.system import Allocation, Bidders, Levers, Menu, PreparedRequest, System
from ega_jax.evaluation.incentives import jump_brackets
from ega_jax.generation.reports import Report
from ega_jax.mechanism import Mechanism
from ega_jax.payment.regret import rerun
from ega_jax.training.mesh import map_rows
from ega_jax.types import AnyRequest, Params

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
def prepare_batch(system: System, request: AnyRequest, levers: Levers) -> PreparedRequest:
    """Prepares a batch of requests, once for all reports."""
    return jax.vmap(lambda request: system.prepare(request, levers))(request)


def truthful(mechanism: Mechanism, prepared: PreparedRequest, num_losing: int) -> Truthful:
    """Allocates and prices a batch of requests, and picks the ads whose reports are tried.

    Args:
      mechanism: the mechanism to measure.
      prepared: the batch, from `prepare_batch`.
      num_losing: the largest number of ads outside the slate that misreport; those of the menu's
        ads with the highest score, bid times quality, are taken.
    """
    return _truthful(mechanism.system, mechanism.networks, mechanism.pricing, prepared, num_losing)


@functools.partial(jax.jit, static_argnames=("pricing", "num_losing"))
def _truthful(system, networks, pricing, prepared, num_losing) -> Truthful:
    def one(prepared: PreparedRequest) -> Truthful:
        allocation, menu = system.allocate(prepared)
        winning = allocation.ads
        ads = jax.tree.map(
            lambda *x: jnp.concatenate(x), winning, _losing(menu, winning, num_losing)
        )
        known, _, _ = counterfactuals(system, pricing.probed, prepared, ads, menu)
        of_slots = jax.tree.map(lambda x: x[: winning.ad.size], known)
        return Truthful(
            allocation=allocation,
            prices=prices(networks, pricing, prepared.levers, allocation, menu, of_slots),
            ad=ads.ad,
            value=jnp.where(ads.ad >= 0, ads.bid, 0.0),
            known=known,
        )

    return map_rows(one, prepared)


def _losing(menu: Menu, winning: Bidders, number: int) -> Bidders:
    """The menu's ads of the highest scores that are not shown, `[A]`, -1 after the last."""
    rivals = menu.rivals
    score = jnp.where(rivals.is_first & rivals.loses(winning.ad), rivals.score, -1.0)
    best, place = jax.lax.top_k(score, min(number, score.size))
    found = jax.tree.map(lambda x: x[place], rivals)
    return dataclasses.replace(found, ad=jnp.where(best >= 0, found.ad, -1))


@functools.partial(jax.jit, static_argnames="pricing")
def _report(system, networks, pricing, prepared, fair, reports) -> Reported:
    """Returns outcomes `[B, A, J]` of reports `[B, A, J]` in currency."""
    one = lambda x: report_each(system, networks, pricing, *x)
    return map_rows(one, (prepared, fair.ad, fair.known, reports))


def report_each(
    system: System,
    networks: dict[str, Params],
    pricing: PricingConfig,
    prepared: PreparedRequest,
    ads: jax.Array,
    known: Counterfactuals,
    reports: jax.Array,
) -> Reported:
    """Allocates and prices one request again for each report of each ad.

    Args:
      system: the system that allocates.
      networks: parameters of the payment networks, by head.
      pricing: sizes of the payment networks and of their inputs.
      prepared: the request.
      ads: `[A]` int32 candidates, -1 for none.
      known: counterfactuals of these ads, `[A]`.
      reports: `[A, J]` currency per click.

    Returns:
      The outcomes, `[A, J]`.
    """
    of_each = jax.tree.map(lambda x: jnp.repeat(x, reports.shape[1], axis=0), known)

    def outcomes_of(ads: jax.Array, bids: jax.Array) -> Reported:
        allocations, menus = system.allocate_each(prepared, Report(ads, bids))
        return jax.vmap(outcome)(bids, ads, allocations, menus, of_each)

    def outcome(bid, ad, allocation, menu, known) -> Reported:
        at_every_slot = for_every_slot(known, allocation.candidate.shape[0])
        every = prices(networks, pricing, prepared.levers, allocation, menu, at_every_slot)
        slot = jnp.argmax(allocation.candidate == ad)
        shown = (allocation.candidate[slot] == ad) & (ad >= 0)
        return Reported(
            bid=bid,
            clicks=clicks_of(allocation, ad),
            price={rule: price[slot] for rule, price in every.items()},
            slot=jnp.where(shown, slot, -1),
            item=allocation.item,
            creative=allocation.creative,
            is_ad=allocation.is_ad,
        )

    return rerun(outcomes_of, ads, reports)


def explore(mechanism: Mechanism, prepared: PreparedRequest, fair: Truthful) -> Reported:
    """Tries each ad's reports: 81 multiples of its value, then bisections of its largest jumps.

    Args:
      mechanism: the mechanism to measure.
      prepared: a batch, from `prepare_batch`.
      fair: the outcome of truthful reports, from `truthful`.

    Returns:
      Outcomes `[B, A, J]` on the host: the `MULTIPLES` first, then the bisections.
    """
    m = mechanism

    def run(reports: np.ndarray) -> Reported:
        asked = prepared, fair, np.float32(reports)
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
