"""What would be shown under other reports of an ad: the allocation, run again.

Truthful prices follow from how an ad's clicks rise with its bid (Myerson), and from what its
presence costs the others (Clarke). One slate tells neither. So the allocation is run again without
each ad, and at a few bids of each ad that do not depend on its own: multiples of the bids at which
it matches its rivals. All of that is one joint search.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.system import Allocation, Levers, Menu, PreparedRequest, System, pick
from ega_jax.payment.regret import with_reports

NUM_RIVALS = 10  # Strongest other ads that count.
_NO_QUALITY = 1e-6  # A lower quality is taken for this one.


@struct.dataclass
class Counterfactuals:
    """What would happen under other reports of ads; nothing here depends on their own bids."""

    without: jax.Array  # [...] float32 value in currency of the best slate without the ad.
    bid: jax.Array  # [..., G] float32 rising bids of the ad, currency per click.
    clicks: jax.Array  # [..., G] float32 pctr of the ad at each, 0 where it is not shown.


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

    On a bid-free menu the best slate without an ad is that of the same menu when the ad bids
    nothing, on others that of another search.

    Args:
      system: what allocates.
      probes: `G` rising multiples of an ad's price scale (`price_scale`), the bids at which its
        clicks are looked up; may be empty.
      prepared: the request.
      bid: `[N]` float32 currency per click, 0 for organic items.
      levers: run-time settings.
      ads: `[A]` int32 candidates, -1 for none.
      menu: what the request's slate was chosen from.
      beside: `[R, N]` further bid vectors to allocate in the same search; none by default.

    Returns:
      The counterfactuals of the ads, `[A]`, without meaning where there is no ad. Then the
      allocations and menus `[R]` of `beside`.
    """
    num_ads, num_probes = ads.shape[0], len(probes)
    probed = _probed_bids(prepared, bid, ads, probes)
    # One batch of bid vectors: A without each ad, A * G with a probed bid, R beside.
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
    """The bids `[A, G]` of each ad at which its clicks are looked up."""
    scale = price_scale(matching_bids(prepared, bid, ads))
    return scale[:, None] * jnp.asarray(probes, jnp.float32)


def of_the_menu(
    menu: Menu, bid: jax.Array, levers: Levers, ads: jax.Array, num_probes: int
) -> Counterfactuals:
    """As far as the menu alone tells: values without each ad, and no clicks at other bids.

    Arguments as `best_value_without`; `num_probes` is G.
    """
    without = best_value_without(menu, bid, levers, ads)
    nothing = jnp.zeros((*without.shape, num_probes), without.dtype)
    return Counterfactuals(without=without, bid=nothing, clicks=nothing)


def for_every_slot(known: Counterfactuals, slots: int) -> Counterfactuals:
    """Repeats what is known of one ad for each of a slate's slots; it means that ad's alone."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, *x.shape)), known)


def clicks_of(allocation: Allocation, ad: jax.Array) -> jax.Array:
    """Clicks `[...]` of one ad `[...]` in each allocation, 0 where it is not shown."""
    is_own = (allocation.candidate == ad[..., None]) & (ad >= 0)[..., None]
    return jnp.sum(allocation.prediction.click_poi, axis=-1, where=is_own)


def matching_bids(prepared: PreparedRequest, bid: jax.Array, ads: jax.Array) -> jax.Array:
    """The bid at which ad i matches rival j's score, `b_j q_j / q_i`; independent of i's own bid.

    Args:
      prepared: the request.
      bid: `[N]` float32 currency per click, 0 for organic items.
      ads: `[A]` int32 candidates, -1 for none.

    Returns:
      `[A, NUM_RIVALS]` falling, of the strongest rivals, with the click probabilities of
      candidates alone; 0 after the last rival. Rivals include losing ads: they set the price of a
      slot.
    """
    own = jnp.maximum(ads, 0)
    quality = jnp.maximum(prepared.quality, _NO_QUALITY)
    rival = prepared.is_ad & (own[:, None] != jnp.arange(bid.shape[0]))  # [A, N]
    needed = jnp.where(rival, bid * quality / quality[own][:, None], 0.0)
    strongest = jax.lax.top_k(needed, min(NUM_RIVALS, bid.shape[0]))[0]
    return jnp.pad(strongest, ((0, 0), (0, NUM_RIVALS - strongest.shape[1])))


def price_scale(matching: jax.Array) -> jax.Array:
    """The unit `[...]` of an ad's prices, currency per click: the mean of its matching bids."""
    mean = matching.mean(-1)
    return jnp.where(mean > 0, mean, 1.0)


def value_to_others(menu: Menu, bid: jax.Array, levers: Levers, ads: jax.Array) -> jax.Array:
    """Values `[A, S]` of the menu's slates when each of some candidates `[A]` bids nothing."""
    shown = pick(bid, menu.candidate, 0.0)
    own = menu.candidate == ads[:, None, None]
    worth = (jnp.where(own, 0.0, shown) + levers.kappa) * menu.pctr
    return jnp.where(menu.where, worth.sum(-1), 0.0)


def best_value_without(menu: Menu, bid: jax.Array, levers: Levers, ads: jax.Array) -> jax.Array:
    """Value of the best slate of the menu when each of some candidates bids nothing.

    On a menu that bids do not influence this is what Clarke's price needs exactly.

    Args:
      menu: the slates.
      bid: `[N]` float32 currency per click.
      levers: run-time settings.
      ads: `[A]` int32, -1 where none.

    Returns:
      `[A]` float32 currency.
    """
    return value_to_others(menu, bid, levers, ads).max(-1)


def externality(
    menu: Menu, bid: jax.Array, levers: Levers, ads: jax.Array, without: jax.Array
) -> jax.Array:
    """What a click of the chosen slate's ads costs the others (Clarke).

    Args:
      menu: the slates.
      bid: `[N]` float32 currency per click.
      levers: run-time settings.
      ads: `[K]` int32 candidates in the slots of the chosen slate, -1 where none.
      without: `[K]` value of the best slate without each.

    Returns:
      `[2, K]` float32 currency per click, at least 0: against the slate of the menu that suits the
      others best, and against the best of these and of `without`.
    """
    of_others = value_to_others(menu, bid, levers, ads)
    best = jnp.argmax(menu.value)
    menus_best = of_others.max(-1)
    lost = jnp.stack([menus_best, jnp.maximum(menus_best, without)]) - of_others[:, best]
    return lost / jnp.maximum(menu.pctr[best], _NO_QUALITY)


def probed_myerson_price(known: Counterfactuals, clicks: jax.Array) -> jax.Array:
    """Myerson's price of a click, as far as the probes tell.

    Whoever reaches these clicks owes it, whatever the bid. Clicks are taken to jump midway between
    two probes, and those that no probe reaches at 1.5 times the last one.

    Args:
      known: of ads `[...]`.
      clicks: `[...]` click probabilities reached.

    Returns:
      `[...]` currency per click, 0 where there are no clicks, or no probes.
    """
    if not known.bid.shape[-1]:
        return jnp.zeros_like(clicks)
    reached = jnp.minimum(known.clicks, clicks[..., None])
    reached = jax.lax.cummax(reached, reached.ndim - 1)
    gained = jnp.diff(reached, append=clicks[..., None])
    ends = jnp.concatenate([known.bid, 2 * known.bid[..., -1:]], axis=-1)
    total = jnp.sum(gained * (ends[..., 1:] + ends[..., :-1]) / 2, axis=-1)
    return jnp.where(clicks > 0, total / jnp.where(clicks > 0, clicks, 1.0), 0.0)
