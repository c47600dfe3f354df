"""Counterfactuals: the allocation without an ad and under other bids of the ad.

Truthful prices require an ad's clicks as a function of its bid (Myerson) or its externality
(Clarke). One slate determines neither. So the allocation is run again without each ad, and at a few
other bids of each ad. These probed bids are multiples of the ad's price scale, the mean of the bids
at which it matches its rivals, and bids between them where its clicks change most. The rivals come
from the menu searched without the ad, so nothing here depends on the ad's own bid.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.auction.system import Allocation, Bidders, Levers, Menu, PreparedRequest, System
from ega_jax.generation.reports import Report, absent

NUM_RIVALS = 10  # Number of strongest rivals in `matching_bids`.
_NO_QUALITY = 1e-6  # Lower bound of qualities and click probabilities as divisors.
_REFINED = 2  # Bids of an ad that one refinement adds.


@struct.dataclass
class Counterfactuals:
    """Outcomes under other reports of ads; they do not depend on the ads' own bids."""

    without: jax.Array  # [...] float32 value of the best slate without the ad, in currency.
    matching: jax.Array  # [..., NUM_RIVALS] float32 bids at which the ad matches its rivals.
    bid: jax.Array  # [..., H] float32 rising bids of the ad, currency per click; H >= G.
    clicks: jax.Array  # [..., H] float32 pctr of the ad at each bid, 0 if it is not shown.
    probed: jax.Array  # [..., G] float32 the same at the multiples of its price scale alone.


@dataclasses.dataclass(frozen=True)
class Probes:
    """The bids of an ad at which its clicks are computed.

    Attributes:
      multiples: `G` rising multiples of the ad's price scale; may be empty.
      refinements: number of times that two more bids are probed, in the middle of the two intervals
        whose jump of clicks times width is largest; needs three multiples.
    """

    multiples: tuple[float, ...]
    refinements: int = 0

    @property
    def number(self) -> int:
        """`H`."""
        return len(self.multiples) + _REFINED * self.refinements


def counterfactuals(
    system: System,
    probes: Probes,
    prepared: PreparedRequest,
    ads: Bidders,
    menu: Menu,
    beside: Report | None = None,
) -> tuple[Counterfactuals, Allocation, Menu]:
    """Runs the allocation again for ads of one request, in joint searches.

    The first search leaves out each ad. Its menus give the rivals and, unless the menu is
    bid-free, the value without the ad. Later ones report the probed bids: multiples of the ad's
    price scale, then bids between them where its clicks change most. For a bid-free menu, the value
    without an ad is that of the menu's best slate with the ad's bid set to its reserve; see
    `best_value_without`.

    The searches are steps of one scan, so they are compiled once. All have equally many reports;
    reports of no ad fill the gaps.

    Args:
      system: the system that allocates.
      probes: the bids of an ad at which its clicks are computed.
      prepared: the request.
      ads: `[A]` the ads.
      menu: the menu from which the request's slate was chosen.
      beside: `[R]` further reports to allocate; none by default.

    Returns:
      The counterfactuals of the ads, `[A]`, undefined for ad -1; and the allocations and menus of
      `beside`, `[R]`, empty without `beside`.
    """
    number, beside = ads.ad.size, Report.none(0) if beside is None else beside
    plan = _Plan.of(number, probes, beside.bid.size)

    def search(known: tuple[jax.Array, ...], step: tuple[Any, ...]) -> tuple[Any, Any]:
        scale, bid_at, clicks_at = known
        reports, owner, probe, part = step
        bid = jnp.where(owner >= 0, reports.bid * scale[owner], reports.bid)
        if probes.refinements:
            between = _most_uncertain(bid_at, clicks_at)
            bid = jnp.where(part >= 0, between[owner, part], bid)
        shown, menus = system.allocate_each(prepared, Report(reports.candidate, bid))
        rivals = jax.tree.map(lambda x: x[:number], menus.rivals)
        matching = jax.vmap(matching_bids)(rivals, ads)
        # Only the first search knows the scale, which is above 0.
        scale = jnp.where(scale > 0, scale, price_scale(matching))
        clicks = clicks_of(shown, reports.candidate)
        bid_at = bid_at.at[owner, probe].set(bid, mode="drop")
        clicks_at = clicks_at.at[owner, probe].set(clicks, mode="drop")
        return (scale, bid_at, clicks_at), (matching, shown, menus)

    nothing = jnp.zeros((number, probes.number), jnp.float32)
    known = jnp.zeros(number, jnp.float32), nothing + jnp.inf, nothing
    places = (jnp.asarray(x) for x in (plan.owner, plan.probe, plan.part))
    steps = plan.reports(ads.ad, probes, beside), *places
    (_, bid_at, clicks_at), (matching, *each) = jax.lax.scan(search, known, steps)
    shown, menus = jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), each)
    of_menu = best_value_without(menu, prepared.levers, ads.ad)
    without = menus.value[:number].max(-1)
    order = jnp.argsort(bid_at, axis=-1)
    found = Counterfactuals(
        without=jnp.where(prepared.levers.bid_free, of_menu, without),
        matching=matching[0],
        bid=jnp.take_along_axis(bid_at, order, axis=-1),
        clicks=jnp.take_along_axis(clicks_at, order, axis=-1),
        probed=clicks_at[:, : len(probes.multiples)],
    )
    return found, *jax.tree.map(lambda x: x[plan.beside], (shown, menus))


def _most_uncertain(bid: jax.Array, clicks: jax.Array) -> jax.Array:
    """The middles `[A, 2]` of the intervals whose jump of clicks times width is largest.

    Args:
      bid: `[A, H]` bids probed so far, in any order; infinite where none is.
      clicks: `[A, H]` clicks there.
    """
    order = jnp.argsort(bid, axis=-1)
    bid, clicks = (jnp.take_along_axis(x, order, axis=-1) for x in (bid, clicks))
    low, high = bid[:, :-1], bid[:, 1:]
    area = jnp.where(jnp.isfinite(high), jnp.abs(jnp.diff(clicks)) * (high - low), -1.0)
    widest = jax.lax.top_k(area, _REFINED)[1]
    return jnp.take_along_axis((low + high) / 2, widest, axis=-1)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which report is in which place of which search; all fields are host arrays."""

    report: np.ndarray  # [steps, size] number of the report, the last one for a gap.
    owner: np.ndarray  # [steps, size] the ad whose bid is probed, -1 for other reports.
    probe: np.ndarray  # [steps, size] the number of the ad's probe, `H` for other reports.
    part: np.ndarray  # [steps, size] which of the refined bids of a search it is, -1 for none.
    beside: np.ndarray  # [R] places of the further reports in all searches together.

    def reports(self, ads: jax.Array, probes: Probes, beside: Report) -> Report:
        """The reports `[steps, size]` of ads `[A]`; probed bids are multiples of their scales."""
        multiples = np.zeros(probes.number, np.float32)  # 0 where a bid between others is probed.
        multiples[: len(probes.multiples)] = probes.multiples
        of_scale = Report(jnp.repeat(ads, multiples.size), jnp.tile(multiples, ads.size))
        every = absent(ads), of_scale, beside, Report.none(1)  # The last one fills gaps.
        return jax.tree.map(lambda *x: jnp.concatenate(x)[self.report], *every)

    @classmethod
    def of(cls, number: int, probes: Probes, beside: int) -> "_Plan":
        """Plans as few searches with as few gaps as possible.

        The ads' absence comes first, then the multiples, then one search for each refinement.
        Further reports fill what is left.

        Args:
          number: of ads.
          probes: of each ad.
          beside: number of further reports.
        """
        fixed, rounds = len(probes.multiples), probes.refinements
        each = number * _REFINED * (rounds > 0)
        taken = number * (1 + probes.number)
        searches = lambda size: 1 + -(-number * fixed // size) + rounds
        size = max(number, each, -(-number * fixed // 2))
        while searches(size) * size < taken + beside:
            size += 1
        report = np.full((searches(size), size), taken + beside)
        report[0, :number] = np.arange(number)
        of_ads = number + np.arange(number * probes.number).reshape(number, probes.number)
        report[1:].reshape(-1)[: number * fixed] = of_ads[:, :fixed].reshape(-1)
        refined = of_ads[:, fixed:].reshape(number, rounds, _REFINED).swapaxes(0, 1)
        report[len(report) - rounds :, :each] = refined.reshape(rounds, each)
        gaps = np.flatnonzero(report == taken + beside)[:beside]
        report.reshape(-1)[gaps] = taken + np.arange(beside)
        is_probe = (report >= number) & (report < taken)
        owner, probe = np.divmod(np.where(is_probe, report - number, 0), max(probes.number, 1))
        part = np.where(is_probe & (probe >= fixed), (probe - fixed) % _REFINED, -1)
        owner, probe = np.where(is_probe, (owner, probe), [[[-1]], [[probes.number]]])
        return cls(report, owner, probe, part, gaps)


def of_the_menu(menu: Menu, levers: Levers, ads: Bidders, probes: Probes) -> Counterfactuals:
    """Counterfactuals from the menu alone; bids and clicks are all 0.

    Args:
      menu: the slates.
      levers: run-time settings.
      ads: `[A]` the ads.
      probes: whose number the result has.
    """
    nothing = jnp.zeros((ads.ad.size, probes.number), jnp.float32)
    return Counterfactuals(
        without=best_value_without(menu, levers, ads.ad),
        matching=jax.vmap(lambda ad: matching_bids(menu.rivals, ad))(ads),
        bid=nothing,
        clicks=nothing,
        probed=nothing[:, : len(probes.multiples)],
    )


def for_every_slot(known: Counterfactuals, slots: int) -> Counterfactuals:
    """Repeats the counterfactuals of one ad for each slot; they are valid only in its own slot."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, *x.shape)), known)


def clicks_of(allocation: Allocation, ad: jax.Array) -> jax.Array:
    """Click probability `[...]` of one ad `[...]` in each allocation, 0 if it is not shown."""
    is_own = (allocation.candidate == ad[..., None]) & (ad >= 0)[..., None]
    return jnp.sum(allocation.prediction.click_poi, axis=-1, where=is_own)


def matching_bids(rivals: Bidders, ad: Bidders) -> jax.Array:
    """The bid at which ad i matches rival j's score, `b_j q_j / q_i`; independent of i's own bid.

    Args:
      rivals: `[V]` the ads of a menu; one that occurs several times counts once.
      ad: the ad, `[]`.

    Returns:
      `[NUM_RIVALS]` matching bids of the strongest rivals, in decreasing order, padded with 0.
      Rivals include losing ads, because these set the price of the last slots.
    """
    is_rival = rivals.is_first & (rivals.ad != ad.ad)
    score = rivals.bid * jnp.maximum(rivals.quality, _NO_QUALITY)
    needed = jnp.where(is_rival, score / jnp.maximum(ad.quality, _NO_QUALITY), 0.0)
    strongest = jax.lax.top_k(needed, min(NUM_RIVALS, needed.size))[0]
    return jnp.pad(strongest, (0, NUM_RIVALS - strongest.size))


def price_scale(matching: jax.Array) -> jax.Array:
    """Unit of an ad's prices, currency per click: the mean of its matching bids; 1 if all are 0.

    The mean runs over all `NUM_RIVALS` entries, including the padding with 0.
    """
    mean = matching.mean(-1)
    return jnp.where(mean > 0, mean, 1.0)


def value_to_others(
    menu: Menu, levers: Levers, ads: jax.Array, own_bid: chex.Numeric = 0.0
) -> jax.Array:
    """Values `[A, S]` of the menu's slates if one of the ads `[A]` bids `own_bid`."""
    own = menu.candidate[None] == ads[:, None, None]
    worth = (jnp.where(own, own_bid, menu.bid[None]) + levers.kappa) * menu.pctr[None]
    return jnp.where(menu.where[None], worth.sum(-1), 0.0)


def best_value_without(menu: Menu, levers: Levers, ads: jax.Array) -> jax.Array:
    """Value of the menu's best slate if one of the ads bids its reserve, which is 0 without one.

    For a menu that depends on no bid, this is exactly the term that Clarke's price needs. An ad
    that bids less than its reserve is in no slate. A higher bid does not change the menu. So truth
    is optimal if a winner pays what it costs the others, compared with the best slate at its
    reserve. Clarke's price raised to the reserve afterwards rewards lies.

    Args:
      menu: the slates.
      levers: run-time settings.
      ads: `[A]` int32 candidates, -1 for none.

    Returns:
      `[A]` float32 currency.
    """
    return value_to_others(menu, levers, ads, menu.reserve).max(-1)


def externality(menu: Menu, levers: Levers, ads: jax.Array, without: jax.Array) -> jax.Array:
    """Externality per click of the chosen slate's ads (Clarke).

    An ad's externality is the value that the others lose because the ad is present.

    Args:
      menu: the slates.
      levers: run-time settings.
      ads: `[K]` int32 candidates in the slots of the chosen slate, -1 in empty slots.
      without: `[K]` value of the best slate without each ad.

    Returns:
      `[2, K]` float32 currency per click, at least 0. Row 0 compares the chosen slate with the
      menu's best slate for the others; row 1 with the better of that slate and `without`.
    """
    of_others = value_to_others(menu, levers, ads)
    best = jnp.argmax(menu.value)
    menus_best = of_others.max(-1)
    lost = jnp.stack([menus_best, jnp.maximum(menus_best, without)]) - of_others[:, best]
    return lost / jnp.maximum(menu.pctr[best], _NO_QUALITY)


def probed_myerson_price(known: Counterfactuals, clicks: jax.Array) -> jax.Array:
    """Myerson's price per click, estimated from the probed bids.

    The price depends on the ad's clicks but not directly on its bid. Clicks are assumed to jump
    midway between two probes. Clicks above those at the last probe are assumed to jump at 1.5 times
    that probe. Clicks at the first probe are free.

    Args:
      known: counterfactuals of ads `[...]`.
      clicks: `[...]` click probabilities of the ads in the slate shown.

    Returns:
      `[...]` currency per click, 0 without clicks or without probes.
    """
    if not known.bid.shape[-1]:
        return jnp.zeros_like(clicks)
    reached = jnp.minimum(known.clicks, clicks[..., None])
    reached = jax.lax.cummax(reached, reached.ndim - 1)
    gained = jnp.diff(reached, append=clicks[..., None])
    ends = jnp.concatenate([known.bid, 2 * known.bid[..., -1:]], axis=-1)
    total = jnp.sum(gained * (ends[..., 1:] + ends[..., :-1]) / 2, axis=-1)
    return jnp.where(clicks > 0, total / jnp.where(clicks > 0, clicks, 1.0), 0.0)
