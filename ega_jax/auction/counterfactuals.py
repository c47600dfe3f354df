"""What an ad's report changes for it and for the others: the allocation, run again.

Prices that make lying useless follow from how an ad's clicks rise with its bid (Myerson), and from
what its presence costs the others (Clarke). One slate tells neither. So the allocation is run again
without each ad, and at a few bids of each ad that do not depend on its own: multiples of what its
rivals ask of it. All of that is one joint search.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.system import (
    Allocation,
    Levers,
    Menu,
    Offer,
    SystemConfig,
    SystemModels,
    allocate_each,
)
from ega_jax.payment.regret import with_reports

NUM_RIVALS = 10  # Strongest other ads that count.
_NO_QUALITY = 1e-6  # Below this, an ad's quality is taken for this.


@struct.dataclass
class Elsewhere:
    """What would happen under other reports of ads; nothing here depends on their own bids."""

    without: jax.Array  # [...] float32 value in currency of the best slate without the ad.
    bid: jax.Array  # [..., G] float32 rising bids of the ad, currency per click.
    clicks: jax.Array  # [..., G] float32 pctr of the ad at each, 0 where it is not shown.


def look_elsewhere(
    models: SystemModels,
    config: SystemConfig,
    probes: tuple[float, ...],
    levers: Levers,
    offer: Offer,
    bid: jax.Array,
    ads: jax.Array,
    menu: Menu,
    beside: jax.Array | None = None,
) -> tuple[Elsewhere, Allocation, Menu]:
    """Runs the allocation again for ads of one request.

    On a bid-free menu the best slate without an ad is that of the same menu when the ad bids
    nothing, elsewhere that of another search.

    Args:
      models: of a system; see `prepare`.
      config: its sizes.
      probes: `G` rising multiples of what the rivals ask of an ad, at which its clicks are looked
        up; may be empty.
      levers: run-time settings.
      offer: the request.
      bid: `[N]` float32 currency per click, 0 for organic items.
      ads: `[A]` int32 candidates, -1 for none.
      menu: what the request's slate was chosen from.
      beside: `[R, N]` further bid vectors to allocate in the same search; none by default.

    Returns:
      What happens elsewhere `[A]`; what there is for none means nothing. Then the allocations and
      menus `[R]` of `beside`.
    """
    num_ads, num_probes = ads.shape[0], len(probes)
    scale = scale_of(asked_by_rivals(offer, bid, ads))
    probed = scale[:, None] * jnp.asarray(probes, jnp.float32)
    bids = [jnp.broadcast_to(bid, (num_ads, bid.size)), with_reports(bid, ads, probed)]
    bids = jnp.concatenate(bids if beside is None else [*bids, beside])
    banned = jnp.full(bids.shape[0], -1).at[:num_ads].set(ads)
    found, menus = allocate_each(models, config, offer, bids, levers, banned)

    last = num_ads * (1 + num_probes)
    reporting = jnp.repeat(ads, num_probes)
    clicks = clicks_of(jax.tree.map(lambda x: x[num_ads:last], found), reporting)
    struck = struck_out(menu, bid, ads, levers)
    elsewhere = Elsewhere(
        without=jnp.where(levers.bid_free, struck, menus.value[:num_ads].max(-1)),
        bid=probed,
        clicks=clicks.reshape(num_ads, num_probes),
    )
    return elsewhere, *jax.tree.map(lambda x: x[last:], (found, menus))


def clicks_of(allocation: Allocation, ad: jax.Array) -> jax.Array:
    """Clicks `[...]` of one ad `[...]` in each allocation, 0 where it is not shown."""
    is_own = (allocation.candidate == ad[..., None]) & (ad >= 0)[..., None]
    return jnp.sum(allocation.prediction.click_poi, axis=-1, where=is_own)


def asked_by_rivals(offer: Offer, bid: jax.Array, ads: jax.Array) -> jax.Array:
    """The bids that ads would need to score as their strongest rivals do, free of their own.

    Args:
      offer: the request.
      bid: `[N]` float32 currency per click, 0 for organic items.
      ads: `[A]` int32 candidates, -1 for none.

    Returns:
      `[A, NUM_RIVALS]` falling `b_j * q_j / q_i`, with the click probabilities of candidates on
      their own; 0 after the last rival. Losing ads are among them: the price of a slot comes from
      those.
    """
    own = jnp.maximum(ads, 0)
    quality = jnp.maximum(offer.quality, _NO_QUALITY)
    rival = offer.is_ad & (own[:, None] != jnp.arange(bid.shape[0]))  # [A, N]
    needed = jnp.where(rival, bid * quality / quality[own][:, None], 0.0)
    strongest = jax.lax.top_k(needed, min(NUM_RIVALS, bid.shape[0]))[0]
    return jnp.pad(strongest, ((0, 0), (0, NUM_RIVALS - strongest.shape[1])))


def scale_of(asked: jax.Array) -> jax.Array:
    """The currency `[...]` that an ad's prices are measured in: the mean of what rivals ask."""
    mean = asked.mean(-1)
    return jnp.where(mean > 0, mean, 1.0)


def value_to_others(menu: Menu, bid: jax.Array, ads: jax.Array, levers: Levers) -> jax.Array:
    """Values `[A, S]` of the menu's slates when each of some candidates `[A]` bids nothing."""
    shown = jnp.where(menu.candidate >= 0, bid[menu.candidate], 0.0)
    own = menu.candidate == ads[:, None, None]
    worth = (jnp.where(own, 0.0, shown) + levers.kappa) * menu.pctr
    return jnp.where(menu.where, worth.sum(-1), 0.0)


def struck_out(menu: Menu, bid: jax.Array, ads: jax.Array, levers: Levers) -> jax.Array:
    """Value of the best slate of the menu when each of some candidates bids nothing.

    On a menu that bids do not influence this is what Clarke's price needs exactly.

    Args:
      menu: the slates.
      bid: `[N]` float32 currency per click.
      ads: `[A]` int32, -1 where none.
      levers: run-time settings.

    Returns:
      `[A]` float32 currency.
    """
    return value_to_others(menu, bid, ads, levers).max(-1)


def owed(menu: Menu, bid: jax.Array, ads: jax.Array, levers: Levers, without: jax.Array):
    """What a click of the chosen slate's ads costs the others (Clarke).

    Args:
      menu: the slates.
      bid: `[N]` float32 currency per click.
      ads: `[K]` int32 candidates in the slots of the chosen slate, -1 where none.
      levers: run-time settings.
      without: `[K]` value of the best slate without each.

    Returns:
      `[2, K]` float32 currency per click, at least 0: against the slate of the menu that suits the
      others best, and against the best of these and of `without`.
    """
    of_others = value_to_others(menu, bid, ads, levers)
    best = jnp.argmax(menu.value)
    menus_best = of_others.max(-1)
    lost = jnp.stack([menus_best, jnp.maximum(menus_best, without)]) - of_others[:, best]
    return lost / jnp.maximum(menu.pctr[best], _NO_QUALITY)


def posted_price(elsewhere: Elsewhere, clicks: jax.Array) -> jax.Array:
    """Myerson's price of a click, as far as the probes tell.

    It is owed by whoever reaches these clicks, whatever the bid: between two probes clicks are
    taken to jump midway, and those that no probe reaches at 1.5 times the last one.

    Args:
      elsewhere: of ads `[...]`.
      clicks: `[...]` click probabilities reached.

    Returns:
      `[...]` currency per click, 0 where there are no clicks, or no probes.
    """
    if not elsewhere.bid.shape[-1]:
        return jnp.zeros_like(clicks)
    reached = jnp.minimum(elsewhere.clicks, clicks[..., None])
    reached = jax.lax.cummax(reached, reached.ndim - 1)
    gained = jnp.diff(reached, append=clicks[..., None])
    ends = jnp.concatenate([elsewhere.bid, 2 * elsewhere.bid[..., -1:]], axis=-1)
    total = jnp.sum(gained * (ends[..., 1:] + ends[..., :-1]) / 2, axis=-1)
    return jnp.where(clicks > 0, total / jnp.where(clicks > 0, clicks, 1.0), 0.0)
