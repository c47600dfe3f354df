"""The price of a click for each ad of an allocated slate, under every rule (sec. 4.3.3).

Written for one request; `vmap` it over a batch.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from ega_jax.auction.counterfactuals import (
    Elsewhere,
    asked_by_rivals,
    clicks_of,
    look_elsewhere,
    owed,
    posted_price,
    scale_of,
    value_to_others,
)
from ega_jax.auction.system import (
    Allocation,
    Levers,
    Menu,
    Offer,
    SystemConfig,
    SystemModels,
    allocate,
    prepare,
)
from ega_jax.payment import network, rules
from ega_jax.payment.network import HEADS, Context, PaymentConfig
from ega_jax.payment.regret import Outcome, Table, tabulate
from ega_jax.setting import same_as, setting
from ega_jax.types import Params, Request

WITHOUT_NETWORK = ("first_price", "gsp", "clarke")
RULES = (*WITHOUT_NETWORK, *network.HEADS)
_NO_CLICKS = 1e-6  # Below this, click probabilities are taken for this.
_FAR = 3.0  # Multiples of an ad's clicks above it look the same to the network.


@dataclasses.dataclass(frozen=True)
class PricingConfig:
    """What is compiled into the prices."""

    hidden: tuple[int, ...] = same_as(PaymentConfig, "hidden")
    # Multiples of what its rivals ask of an ad at which its clicks are looked up.
    probes: tuple[float, ...] = setting(
        (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), at_least=0
    )
    heads: tuple[str, ...] = setting(HEADS, choices=HEADS)  # Each is trained as its own network.

    @property
    def rules(self) -> tuple[str, ...]:
        """The payment rules that there are prices of, in the order of `prices`."""
        return (*WITHOUT_NETWORK, *self.heads)


def context_of(
    offer: Offer,
    allocation: Allocation,
    menu: Menu,
    bid: jax.Array,
    levers: Levers,
    elsewhere: Elsewhere,
) -> Context:
    """What the payment network sees of each slot's ad (25).

    The other ads' bids come as prices that this ad might owe per click: the bids that it would need
    to score as its strongest rivals do, what showing it costs the others, and Myerson's price as
    far as a few other bids of the ad tell. The scale is that of the rivals. None of this depends on
    the ad's own bid, but through slate and menu.

    Args:
      offer: the request.
      allocation: its slate.
      menu: what it was chosen from.
      bid: `[N]` float32 currency per click, 0 for organic items.
      levers: run-time settings.
      elsewhere: of the slots' ads, `[K]`.

    Returns:
      The context, all `[K, ...]`; that of organic items and empty slots means nothing.
    """
    asked = asked_by_rivals(offer, bid, allocation.candidate)
    clicks = allocation.prediction.click_poi
    costs = owed(menu, bid, allocation.candidate, levers, elsewhere.without)
    prices = jnp.stack([*costs, posted_price(elsewhere, clicks)], axis=-1)
    reach = elsewhere.clicks / jnp.maximum(clicks, _NO_CLICKS)[:, None]
    return Context(
        slate=allocation.prediction.states,
        others=jnp.concatenate([asked, prices], axis=-1),
        reach=jnp.minimum(reach, _FAR),
        exposure=jnp.exp(allocation.log_z) * clicks,
        scale=scale_of(asked),
    )


def prices(
    networks: dict[str, Params],
    pricing: PricingConfig,
    levers: Levers,
    offer: Offer,
    bid: jax.Array,
    allocation: Allocation,
    menu: Menu,
    elsewhere: Elsewhere,
) -> jax.Array:
    """Prices of a slate's clicks under each of `pricing.rules`.

    Args:
      networks: parameters of the payment network by its head.
      pricing: its sizes and heads.
      levers: run-time settings.
      offer: the request.
      bid: `[N]` float32 currency per click.
      allocation: the slate.
      menu: what it was chosen from.
      elsewhere: of the slots' ads, `[K]`; only Clarke's price and the network read it.

    Returns:
      `[len(pricing.rules), K]` float32 currency per click, from 0 to the bid; 0 for organic items.
    """
    is_ad, own = allocation.is_ad, jnp.where(allocation.is_ad, allocation.bid, 0.0)
    places = jnp.arange(offer.item.shape[0])
    losing = offer.is_ad & ~jnp.isin(places, allocation.candidate) & (bid >= levers.reserve)
    best_losing = jnp.max(bid * offer.quality, where=losing, initial=0.0)
    quality = offer.quality[jnp.maximum(allocation.candidate, 0)]
    best = jnp.argmax(menu.value)
    left = value_to_others(menu, bid, allocation.candidate, levers)[:, best]
    context = context_of(offer, allocation, menu, bid, levers, elsewhere)
    learned = [
        network.price(networks[head], PaymentConfig(head, pricing.hidden), context, own)
        for head in pricing.heads
    ]
    every = jnp.stack(
        [
            rules.slate_first_price(own, is_ad),
            rules.slate_gsp(own, quality, is_ad, best_losing),
            rules.slate_clarke(own, menu.pctr[best], elsewhere.without - left),
            *learned,
        ]
    )
    return jax.vmap(rules.with_reserve, in_axes=(0, None, None, None))(
        every, own, is_ad, levers.reserve
    )


def tabulate_request(
    models: SystemModels,
    config: SystemConfig,
    pricing: PricingConfig,
    levers: Levers,
    request: Request,
    key: chex.PRNGKey,
    num_reports: int,
) -> Table:
    """Outcomes of one request's ads at their true bids and at sampled misreports (sec. 4.4.2).

    Args:
      models: of a system; see `prepare`.
      config: its sizes.
      pricing: sizes of what the network sees.
      levers: run-time settings.
      request: one request; its bids are taken for the true values.
      key: of the misreports.
      num_reports: `J`; one in each `J`-th of (0, 2), as a multiple of the true value.

    Returns:
      The table, `[K]` and `[K, J]`.
    """
    offer = prepare(models, config, request)
    truthful, menu = allocate(models, config, offer, request.bid, levers)
    ads = jnp.where(truthful.is_ad, truthful.candidate, -1)
    spread = jnp.arange(num_reports) + jax.random.uniform(key, (ads.size, num_reports))
    reports = truthful.bid[:, None] * spread * (2.0 / num_reports)
    bid, each = request.bid, num_reports + 1

    def outcomes_of(bids: jax.Array, reporting: jax.Array) -> Outcome:
        elsewhere, shown, menus = look_elsewhere(
            models, config, pricing.probes, levers, offer, bid, ads, menu, beside=bids
        )
        of_each = jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), elsewhere)
        outcome = lambda *x: _outcome(offer, levers, *x)
        return jax.vmap(outcome)(shown, menus, bids, reporting, of_each)

    return tabulate(outcomes_of, bid, ads, reports)


def _outcome(offer, levers, allocation, menu, bid, ad, elsewhere) -> Outcome:
    """What an allocation means for one ad."""
    slot = jnp.argmax(allocation.candidate == ad)
    at_every_slot = for_every_slot(elsewhere, allocation)
    context = context_of(offer, allocation, menu, bid, levers, at_every_slot)
    return Outcome(
        bid=bid[ad],
        clicks=clicks_of(allocation, ad),
        context=jax.tree.map(lambda x: x[slot], context),
    )


def for_every_slot(elsewhere: Elsewhere, allocation: Allocation) -> Elsewhere:
    """Repeats what is known of one ad for each slot of a slate, where it means the ad's alone."""
    slots = allocation.candidate.shape[0]
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, *x.shape)), elsewhere)
