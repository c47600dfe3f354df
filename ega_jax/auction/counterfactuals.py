"""Counterfactuals: the allocation without an ad and under other bids of the ad.

Truthful prices require an ad's clicks as a function of its bid (Myerson) or its externality
(Clarke). One slate determines neither. So the allocation is run again without each ad, and at a few
other bids of each ad. These probed bids are multiples of the ad's price scale, the mean of the bids
at which it matches its rivals. The rivals come from the menu searched without the ad, so nothing
here depends on the ad's own bid.
"""

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


@struct.dataclass
class Counterfactuals:
    """Outcomes under other reports of ads; they do not depend on the ads' own bids."""

    without: jax.Array  # [...] float32 value of the best slate without the ad, in currency.
    matching: jax.Array  # [..., NUM_RIVALS] float32 bids at which the ad matches its rivals.
    bid: jax.Array  # [..., G] float32 rising bids of the ad, currency per click.
    clicks: jax.Array  # [..., G] float32 pctr of the ad at each bid, 0 if it is not shown.


def counterfactuals(
    system: System,
    probes: tuple[float, ...],
    prepared: PreparedRequest,
    ads: Bidders,
    menu: Menu,
    beside: Report | None = None,
) -> tuple[Counterfactuals, Allocation, Menu]:
    """Runs the allocation again for ads of one request, in joint searches.

    The first search leaves out each ad. Its menus give the rivals and, unless the menu is
    bid-free, the value without the ad. Later ones report the probed bids, which are multiples of
    the ad's price scale. For a bid-free menu, the value without an ad is that of the menu's best
    slate with the ad's bid set to its reserve; see `best_value_without`.

    The searches are steps of one scan, so they are compiled once. All have equally many reports;
    reports of no ad fill the gaps.

    Args:
      system: the system that allocates.
      probes: `G` rising multiples of an ad's price scale (`price_scale`): the bids at which its
        clicks are computed; may be empty.
      prepared: the request.
      ads: `[A]` the ads.
      menu: the menu from which the request's slate was chosen.
      beside: `[R]` further reports to allocate; none by default.

    Returns:
      The counterfactuals of the ads, `[A]`, undefined for ad -1; and the allocations and menus of
      `beside`, `[R]`, empty without `beside`.
    """
    number, beside = ads.ad.size, Report.none(0) if beside is None else beside
    first, num_probed = number + beside.bid.size, number * len(probes)
    size, start = _sizes(first, num_probed)
    end = -(-(start + num_probed) // size) * size
    multiples = jnp.tile(jnp.asarray(probes, jnp.float32), number)
    of_scale = Report(jnp.repeat(ads.ad, len(probes)), multiples)
    gaps = Report.none(start - first), Report.none(end - start - num_probed)
    parts = absent(ads.ad), beside, gaps[0], of_scale, gaps[1]
    reports = jax.tree.map(lambda *x: jnp.concatenate(x).reshape(-1, size), *parts)
    owner = np.full(end, -1)
    owner[start : start + num_probed] = np.repeat(np.arange(number), len(probes))

    def search(scale: jax.Array, step: tuple[Report, jax.Array]) -> tuple[jax.Array, Any]:
        reports, owner = step
        bid = jnp.where(owner >= 0, reports.bid * scale[owner], reports.bid)
        shown, menus = system.allocate_each(prepared, Report(reports.candidate, bid))
        rivals = jax.tree.map(lambda x: x[:number], menus.rivals)
        matching = jax.vmap(matching_bids)(rivals, ads)
        # Only the first search knows the scale, which is above 0.
        scale = jnp.where(scale > 0, scale, price_scale(matching))
        return scale, (matching, bid, clicks_of(shown, reports.candidate), shown, menus)

    steps = reports, jnp.asarray(owner.reshape(-1, size))
    matching, *found = jax.lax.scan(search, jnp.zeros(number, jnp.float32), steps)[1]
    bid, clicks, shown, menus = jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), found)
    of_menu = best_value_without(menu, prepared.levers, ads.ad)
    without = menus.value[:number].max(-1)
    known = Counterfactuals(
        without=jnp.where(prepared.levers.bid_free, of_menu, without),
        matching=matching[0],
        bid=bid[start : start + num_probed].reshape(number, -1),
        clicks=clicks[start : start + num_probed].reshape(number, -1),
    )
    return known, *jax.tree.map(lambda x: x[number:first], (shown, menus))


def _sizes(first: int, probes: int) -> tuple[int, int]:
    """Reports of one search, and the place of the first probe, which is in a later search.

    A search costs about as much as its reports, so few gaps are better than few searches.

    Args:
      first: number of reports that the first search may have.
      probes: number of probes.
    """
    if probes == 0 or first >= probes:
        return -(-(first + probes) // (2 if probes else 1)), first
    size = max(first, -(-probes // 2))
    return size, size


def of_the_menu(menu: Menu, levers: Levers, ads: Bidders, num_probes: int) -> Counterfactuals:
    """Counterfactuals from the menu alone; bids and clicks are all 0.

    Args:
      menu: the slates.
      levers: run-time settings.
      ads: `[A]` the ads.
      num_probes: `G`.
    """
    nothing = jnp.zeros((ads.ad.size, num_probes), jnp.float32)
    return Counterfactuals(
        without=best_value_without(menu, levers, ads.ad),
        matching=jax.vmap(lambda ad: matching_bids(menu.rivals, ad))(ads),
        bid=nothing,
        clicks=nothing,
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
    """Values `[A, S]` of the menu's slates if one of the ads `[A]` bids `own_bid` (or `[S, K]`)."""
    own = menu.candidate[None] == ads[:, None, None]
    worth = (jnp.where(own, own_bid, menu.bid[None]) + levers.kappa) * menu.pctr[None]
    return jnp.where(menu.where[None], worth.sum(-1), 0.0)


def best_value_without(menu: Menu, levers: Levers, ads: jax.Array) -> jax.Array:
    """Value of the menu's best slate if one of the ads bids its reserve, which is 0 without one.

    For a menu that depends on no bid, this is exactly the term that Clarke's price needs. An ad
    that bids less than its reserve is in no slate, and one that bids more has no other influence on
    the menu. So a winner pays what it costs the others, compared with the best slate at the least
    bid that lets it take part: that keeps truth optimal. Clarke's price raised to the reserve
    afterwards does not.

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
