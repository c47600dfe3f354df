"""The price of a click for each ad of an allocated slate, under every rule (sec. 4.3.3).

Written for one request; `vmap` it over a batch.
"""

import chex
import jax
import jax.numpy as jnp

from ega_jax.payment import network, rules
from ega_jax.payment.network import Context, PaymentConfig
from ega_jax.payment.regret import Outcome, Table, tabulate
from ega_jax.reward.allocation import (
    Allocation,
    AllocationConfig,
    Levers,
    Menu,
    Models,
    Offer,
    allocate,
    allocate_each,
    prepare,
)
from ega_jax.reward.contributions import values_without
from ega_jax.types import Params, Request

RULES = ("first_price", "gsp", "clarke", *network.HEADS)
NUM_RIVALS = 10  # Strongest other ads that the network sees.
_NO_QUALITY = 1e-6  # Below this, an ad's quality is taken for this.


def context_of(
    offer: Offer, allocation: Allocation, menu: Menu, bid: jax.Array, levers: Levers
) -> Context:
    """What the payment network sees of each slot's ad (25).

    The other ads' bids come as prices that this ad might owe per click. First the bids that it
    would need to score as they do, `b_j * q_j / q_i` with the qualities of candidates on their own:
    they hold the losing ads too, which is where the price of a slot comes from. Then what showing
    this slate, and not the one of the menu that suits the others best, costs them. The mean of the
    first is the scale. None of this depends on the ad's own bid, but through slate and menu.

    Args:
      offer: the request.
      allocation: its slate.
      menu: what it was chosen from.
      bid: `[N]` float32 currency per click, 0 for organic items.
      levers: run-time settings.

    Returns:
      The context, all `[K, ...]`; that of organic items and empty slots means nothing.
    """
    own = jnp.maximum(allocation.candidate, 0)
    quality = jnp.maximum(offer.quality, _NO_QUALITY)
    rival = offer.is_ad & (own[:, None] != jnp.arange(bid.shape[0]))  # [K, N]
    needed = jnp.where(rival, bid * quality / quality[own][:, None], 0.0)
    strongest, _ = jax.lax.top_k(needed, min(NUM_RIVALS, bid.shape[0]))
    pctr = jnp.maximum(menu.pctr[jnp.argmax(menu.value)], _NO_QUALITY)
    cost = externality(menu, bid, allocation.candidate, levers) / pctr
    mean = strongest.mean(-1)
    return Context(
        slate=allocation.prediction.states,
        others=jnp.concatenate([strongest, cost[:, None]], axis=-1),
        exposure=jnp.exp(allocation.log_z) * allocation.prediction.click_poi,
        scale=jnp.where(mean > 0, mean, 1.0),
    )


def externality(menu: Menu, bid: jax.Array, candidate: jax.Array, levers: Levers) -> jax.Array:
    """What the others lose by the chosen slate against the one of the menu that suits them best.

    Args:
      menu: the slates.
      bid: `[N]` float32 currency per click.
      candidate: `[K]` int32 whose others are meant, -1 where none.
      levers: run-time settings.

    Returns:
      `[K]` float32 currency, at least 0.
    """
    of_others = _value_to_others(menu, bid, candidate, levers)
    return of_others.max(-1) - of_others[:, jnp.argmax(menu.value)]


def _value_to_others(menu, bid, candidate, levers) -> jax.Array:
    """Values `[K, S]` of the menu's slates when each of some candidates `[K]` bids nothing."""
    shown = jnp.where(menu.candidate >= 0, bid[menu.candidate], 0.0)
    own = menu.candidate == candidate[:, None, None]
    worth = (jnp.where(own, 0.0, shown) + levers.kappa) * menu.pctr
    return jnp.where(menu.beams.where, worth.sum(-1), 0.0)


def struck_out(menu: Menu, bid: jax.Array, candidate: jax.Array, levers: Levers) -> jax.Array:
    """Value of the best slate of the menu when each of some candidates bids nothing.

    On a menu that bids do not influence this is what Clarke's price needs exactly.

    Args:
      menu: the slates.
      bid: `[N]` float32 currency per click.
      candidate: `[K]` int32, -1 where none.
      levers: run-time settings.

    Returns:
      `[K]` float32 currency.
    """
    return _value_to_others(menu, bid, candidate, levers).max(-1)


def without_each(
    models: Models,
    config: AllocationConfig,
    levers: Levers,
    offer: Offer,
    bid: jax.Array,
    candidate: jax.Array,
    menu: Menu,
) -> jax.Array:
    """Value `[A]`, in currency, of the best slate without each candidate `[A]` (-1 for none).

    On a bid-free menu that is the best value of the same menu when the ad bids nothing, elsewhere
    that of another search.
    """
    search = values_without(models, config, offer, bid, levers, candidate)
    return jnp.where(levers.bid_free, struck_out(menu, bid, candidate, levers), search)


def marginal_values(menu: Menu, without: jax.Array) -> jax.Array:
    """Marginal contributions (31) `[K]` in currency from the values without each ad `[K]`."""
    return menu.value.max() - without


def prices(
    networks: dict[str, Params],
    hidden: tuple[int, ...],
    levers: Levers,
    offer: Offer,
    bid: jax.Array,
    allocation: Allocation,
    menu: Menu,
    without: jax.Array,
) -> jax.Array:
    """Prices of a slate's clicks under every rule.

    Args:
      networks: parameters of the payment network by its head.
      hidden: its layers.
      levers: run-time settings.
      offer: the request.
      bid: `[N]` float32 currency per click.
      allocation: the slate.
      menu: what it was chosen from.
      without: `[K]` value of the best slate without each slot's ad, for Clarke's price.

    Returns:
      `[len(RULES), K]` float32 currency per click, from 0 to the bid; 0 for organic items.
    """
    is_ad, own = allocation.is_ad, jnp.where(allocation.is_ad, allocation.bid, 0.0)
    places = jnp.arange(offer.item.shape[0])
    losing = offer.is_ad & ~jnp.isin(places, allocation.candidate) & (bid >= levers.reserve)
    best_losing = jnp.max(bid * offer.quality, where=losing, initial=0.0)
    quality = offer.quality[jnp.maximum(allocation.candidate, 0)]
    pctr = menu.pctr[jnp.argmax(menu.value)]
    context = context_of(offer, allocation, menu, bid, levers)
    learned = [
        network.price(networks[head], PaymentConfig(head, hidden), context, own)
        for head in network.HEADS
    ]
    every = jnp.stack(
        [
            rules.slate_first_price(own, is_ad),
            rules.slate_gsp(own, quality, is_ad, best_losing),
            rules.slate_clarke(own, pctr, marginal_values(menu, without)),
            *learned,
        ]
    )
    every = jnp.where(is_ad, every, 0.0)
    return jax.vmap(rules.with_reserve, in_axes=(0, None, None, None))(
        every, own, is_ad, levers.reserve
    )


def tabulate_request(
    models: Models,
    config: AllocationConfig,
    levers: Levers,
    request: Request,
    key: chex.PRNGKey,
    num_reports: int,
) -> Table:
    """Outcomes of one request's ads at their true bids and at sampled misreports (sec. 4.4.2).

    Args:
      models: generator, reward model, items.
      config: sizes.
      levers: run-time settings.
      request: one request; its bids are taken for the true values.
      key: of the misreports.
      num_reports: `J`; one in each `J`-th of (0, 2), as a multiple of the true value.

    Returns:
      The table, `[K]` and `[K, J]`.
    """
    offer = prepare(models, config, request)
    truthful, _ = allocate(models, config, offer, request.bid, levers)
    slots = truthful.candidate.shape[0]
    spread = jnp.arange(num_reports) + jax.random.uniform(key, (slots, num_reports))
    reports = truthful.bid[:, None] * spread * (2.0 / num_reports)

    def outcomes_of(bids: jax.Array, ads: jax.Array) -> Outcome:
        shown = allocate_each(models, config, offer, bids, levers)
        return jax.vmap(lambda *x: _outcome(offer, levers, *x))(*shown, bids, ads)

    ads = jnp.where(truthful.is_ad, truthful.candidate, -1)
    return tabulate(outcomes_of, request.bid, ads, reports)


def _outcome(offer, levers, allocation, menu, bid, ad) -> Outcome:
    """What an allocation means for one ad."""
    slot = jnp.argmax(allocation.candidate == ad)
    shown = allocation.candidate[slot] == ad
    context = jax.tree.map(lambda x: x[slot], context_of(offer, allocation, menu, bid, levers))
    clicks = jnp.where(shown, allocation.prediction.click_poi[slot], 0.0)
    return Outcome(bid=bid[ad], clicks=clicks, context=context)
