"""Counterfactuals: the allocation without an ad and under other bids of the ad.

Truthful prices require an ad's clicks as a function of its bid (Myerson) or its externality
(Clarke). One slate determines neither. So the allocation is run again without each ad, and at a few
other bids of each ad. These probed bids are multiples of the ad's price scale, the mean of the bids
at which it matches its rivals, so they do not depend on its own bid. One joint search computes all
of them.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.system import Allocation, Levers, Menu, PreparedRequest, System, pick
from ega_jax.payment.regret import with_reports

NUM_RIVALS = 10  # Number of strongest rivals in `matching_bids`.
_NO_QUALITY = 1e-6  # Lower bound of qualities and click probabilities as divisors.


@struct.dataclass
class Counterfactuals:
    """Outcomes under other reports of ads; they do not depend on the ads' own bids."""

    without: jax.Array  # [...] float32 value of the best slate without the ad, in currency.
    bid: jax.Array  # [..., G] float32 rising bids of the ad, currency per click.
    clicks: jax.Array  # [..., G] float32 pctr of the ad at each bid, 0 if it is not shown.


def counterfactuals(
    system: System,
    probes: tuple[float, ...],
    prepared: PreparedRequest,
    bid: jax.Array,
    levers: Levers,
    ads: jax.Array,
    menu: Menu,
    beside: jax.Array | None = None,
) -> tuple[Counterfactuals, Allocation, Menu]:
    """Runs the allocation again for ads of one request.

    For a bid-free menu, `without` is the value of the menu's best slate with the ad's bid set to 0.
    Otherwise it is the value of the best slate of another search without the ad.

    Args:
      system: the system that allocates.
      probes: `G` rising multiples of an ad's price scale (`price_scale`): the bids at which its
        clicks are computed; may be empty.
      prepared: the request.
      bid: `[N]` float32 currency per click, 0 for organic items.
      levers: run-time settings.
      ads: `[A]` int32 candidates, -1 for none.
      menu: the menu from which the request's slate was chosen.
      beside: `[R, N]` further bid vectors to allocate in the same search; none by default.

    Returns:
      The counterfactuals of the ads, `[A]`, undefined for ad -1; and the allocations and menus of
      `beside`, `[R]`, empty without `beside`.
    """
    num_ads, num_probes = ads.shape[0], len(probes)
    probed = _probed_bids(prepared, bid, ads, probes)
    # One batch of bid vectors: A without each ad, A * G with a probed bid, R of `beside`.
    bids = [jnp.broadcast_to(bid, (num_ads, bid.size)), with_reports(bid, ads, probed)]
    bids = jnp.concatenate(bids if beside is None else [*bids, beside])
    banned = jnp.full(bids.shape[0], -1).at[:num_ads].set(ads)
    found, menus = system.allocate_each(prepared, bids, levers, banned)

    last = num_ads * (1 + num_probes)
    reporting = jnp.repeat(ads, num_probes)
    clicks = clicks_of(jax.tree.map(lambda x: x[num_ads:last], found), reporting)
    of_menu = best_value_without(menu, bid, levers, ads)
    known = Counterfactuals(
        without=jnp.where(levers.bid_free, of_menu, menus.value[:num_ads].max(-1)),
        bid=probed,
        clicks=clicks.reshape(num_ads, num_probes),
    )
    return known, *jax.tree.map(lambda x: x[last:], (found, menus))


def _probed_bids(prepared, bid, ads, probes) -> jax.Array:
    """The bids `[A, G]` of each ad at which its clicks are computed."""
    scale = price_scale(matching_bids(prepared, bid, ads))
    return scale[:, None] * jnp.asarray(probes, jnp.float32)


def of_the_menu(
    menu: Menu, bid: jax.Array, levers: Levers, ads: jax.Array, num_probes: int
) -> Counterfactuals:
    """Counterfactuals from the menu alone: values without each ad; bids and clicks are all 0.

    Arguments as in `best_value_without`; `num_probes` is G.
    """
    without = best_value_without(menu, bid, levers, ads)
    nothing = jnp.zeros((*without.shape, num_probes), without.dtype)
    return Counterfactuals(without=without, bid=nothing, clicks=nothing)


def for_every_slot(known: Counterfactuals, slots: int) -> Counterfactuals:
    """Repeats the counterfactuals of one ad for each slot; they are valid only in its own slot."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, *x.shape)), known)


def clicks_of(allocation: Allocation, ad: jax.Array) -> jax.Array:
    """Click probability `[...]` of one ad `[...]` in each allocation, 0 if it is not shown."""
    is_own = (allocation.candidate == ad[..., None]) & (ad >= 0)[..., None]
    return jnp.sum(allocation.prediction.click_poi, axis=-1, where=is_own)


def matching_bids(prepared: PreparedRequest, bid: jax.Array, ads: jax.Array) -> jax.Array:
    """The bid at which ad i matches rival j's score, `b_j q_j / q_i`; independent of i's own bid.

    Args:
      prepared: the request.
      bid: `[N]` float32 currency per click, 0 for organic items.
      ads: `[A]` int32 candidates, -1 for none.

    Returns:
      `[A, NUM_RIVALS]` matching bids of the strongest rivals, in decreasing order, padded with 0.
      Qualities are click probabilities of candidates on their own. Rivals include losing ads,
      because these set the price of the last slots.
    """
    own = jnp.maximum(ads, 0)
    quality = jnp.maximum(prepared.quality, _NO_QUALITY)
    rival = prepared.is_ad & (own[:, None] != jnp.arange(bid.shape[0]))  # [A, N]
    needed = jnp.where(rival, bid * quality / quality[own][:, None], 0.0)
    strongest = jax.lax.top_k(needed, min(NUM_RIVALS, bid.shape[0]))[0]
    return jnp.pad(strongest, ((0, 0), (0, NUM_RIVALS - strongest.shape[1])))


def price_scale(matching: jax.Array) -> jax.Array:
    """Unit of an ad's prices, currency per click: the mean of its matching bids; 1 if all are 0.

    The mean runs over all `NUM_RIVALS` entries, including the padding with 0.
    """
    mean = matching.mean(-1)
    return jnp.where(mean > 0, mean, 1.0)


def value_to_others(menu: Menu, bid: jax.Array, levers: Levers, ads: jax.Array) -> jax.Array:
    """Values `[A, S]` of the menu's slates if one of the ads `[A]` bids 0."""
    shown = pick(bid, menu.candidate, 0.0)
    own = menu.candidate == ads[:, None, None]
    worth = (jnp.where(own, 0.0, shown) + levers.kappa) * menu.pctr
    return jnp.where(menu.where, worth.sum(-1), 0.0)


def best_value_without(menu: Menu, bid: jax.Array, levers: Levers, ads: jax.Array) -> jax.Array:
    """Value of the menu's best slate if one of the ads bids 0.

    For a menu that does not depend on bids, this is exactly the term that Clarke's price needs.

    Args:
      menu: the slates.
      bid: `[N]` float32 currency per click.
      levers: run-time settings.
      ads: `[A]` int32 candidates, -1 for none.

    Returns:
      `[A]` float32 currency.
    """
    return value_to_others(menu, bid, levers, ads).max(-1)


def externality(
    menu: Menu, bid: jax.Array, levers: Levers, ads: jax.Array, without: jax.Array
) -> jax.Array:
    """Externality per click of the chosen slate's ads (Clarke).

    An ad's externality is the value that the others lose because the ad is present.

    Args:
      menu: the slates.
      bid: `[N]` float32 currency per click.
      levers: run-time settings.
      ads: `[K]` int32 candidates in the slots of the chosen slate, -1 in empty slots.
      without: `[K]` value of the best slate without each ad.

    Returns:
      `[2, K]` float32 currency per click, at least 0. Row 0 compares the chosen slate with the
      menu's best slate for the others; row 1 with the better of that slate and `without`.
    """
    of_others = value_to_others(menu, bid, levers, ads)
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
