"""The price of a click for each ad of an allocated slate, under every rule (sec. 4.3.3).

`RULES` is the table of payment rules. A new rule is one entry: its name, its function of a
`PricedSlate`, and what it needs to know. It is then served, tabulated and judged as the others are.
All functions take one request; `vmap` them over a batch.
"""

import dataclasses
import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.counterfactuals import (
    Counterfactuals,
    externality,
    matching_bids,
    price_scale,
    probed_myerson_price,
    value_to_others,
)
from ega_jax.auction.system import Allocation, Levers, Menu, PreparedRequest
from ega_jax.payment import network, rules
from ega_jax.payment.network import Context, PaymentConfig
from ega_jax.setting import same_as, setting
from ega_jax.types import Params

_NO_CLICKS = 1e-6  # Lower click probabilities are taken for this one.
_FAR = 3.0  # Multiples of an ad's clicks above it look the same to the network.


class Needs(enum.Enum):
    """What a payment rule must know beside the slate and its menu."""

    NOTHING = "nothing"
    SEARCH = "another search"  # The best slate without each ad; a bid-free menu tells it alone.
    NETWORK = "a payment network"  # Which reads the counterfactuals of another search, too.


@struct.dataclass
class PricedSlate:
    """What a payment rule may read of an allocated slate, one row per slot."""

    is_ad: jax.Array  # [K] bool.
    bid: jax.Array  # [K] float32 currency per click, 0 for organic items and in empty slots.
    quality: jax.Array  # [K] float32 click probability of the candidate alone in the first slot.
    clicks: jax.Array  # [K] float32 click probability in this slate.
    losing_score: jax.Array  # [] float32 best bid times quality of an ad not shown, 0 if none.
    cost: jax.Array  # [K] float32 what the ad costs the others, currency per impression.
    context: Context  # [K] what payment networks see.
    networks: dict[str, Params]  # Rule -> parameters of its payment network.
    hidden: tuple[int, ...] = struct.field(pytree_node=False)  # Layers of the payment networks.

    def network_price(self, head: str) -> jax.Array:
        """Prices `[K]` of a payment network's head, currency per click."""
        config = PaymentConfig(head, self.hidden)
        return network.price(self.networks[head], config, self.context, self.bid)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A payment rule.

    Attributes:
      name: as in `results.json`, in settings and for `Mechanism.allocate`.
      price: `PricedSlate -> [K]` currency per click; a reserve is applied afterwards.
      needs: what it must know.
    """

    name: str
    price: Callable[[PricedSlate], jax.Array]
    needs: Needs = Needs.NOTHING


def _first_price(slate: PricedSlate) -> jax.Array:
    return rules.slate_first_price(slate.bid, slate.is_ad)


def _gsp(slate: PricedSlate) -> jax.Array:
    return rules.slate_gsp(slate.bid, slate.quality, slate.is_ad, slate.losing_score)


def _clarke(slate: PricedSlate) -> jax.Array:
    return rules.slate_clarke(slate.bid, slate.clicks, slate.cost)


def _rate(slate: PricedSlate) -> jax.Array:
    return slate.network_price("rate")


def _threshold(slate: PricedSlate) -> jax.Array:
    return slate.network_price("threshold")


RULES = {
    rule.name: rule
    for rule in (
        Rule("first_price", _first_price),
        Rule("gsp", _gsp),
        Rule("clarke", _clarke, Needs.SEARCH),
        Rule("rate", _rate, Needs.NETWORK),
        Rule("threshold", _threshold, Needs.NETWORK),
    )
}


def rules_without_network() -> tuple[str, ...]:
    """The names of the payment rules that no network has to be trained for."""
    return tuple(name for name, rule in RULES.items() if rule.needs is not Needs.NETWORK)


@dataclasses.dataclass(frozen=True)
class PricingSettings:
    """What prices read of the group `payment`."""

    hidden: tuple[int, ...] = same_as(PaymentConfig, "hidden")
    # Multiples of the bid at which an ad matches its rivals: its clicks are looked up there. See
    # `counterfactuals`; between two probes prices can only guess.
    probes: tuple[float, ...] = setting(
        (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), at_least=0
    )
    # Those that a payment network is trained with, one by one on the same table.
    heads: tuple[str, ...] = setting(network.HEADS, choices=network.HEADS)


@dataclasses.dataclass(frozen=True)
class PricingConfig(PricingSettings):
    """What is compiled into the prices."""

    rules: tuple[str, ...] = dataclasses.field(
        init=False
    )  # Names of the rules there are prices of.

    def __post_init__(self):
        object.__setattr__(self, "rules", (*rules_without_network(), *self.heads))


def prices(
    networks: dict[str, Params],
    pricing: PricingConfig,
    prepared: PreparedRequest,
    bid: jax.Array,
    levers: Levers,
    allocation: Allocation,
    menu: Menu,
    known: Counterfactuals,
) -> dict[str, jax.Array]:
    """Prices of a slate's clicks under each of `pricing.rules`.

    Args:
      networks: parameters of the payment network by its head.
      pricing: its sizes and heads.
      prepared: the request.
      bid: `[N]` float32 currency per click.
      levers: run-time settings.
      allocation: the slate.
      menu: what it was chosen from.
      known: counterfactuals of the slots' ads, `[K]`; rules that need nothing do not read them.

    Returns:
      Rule -> `[K]` float32 currency per click, from 0 to the bid; 0 for organic items.
    """
    slate = priced_slate(networks, pricing, prepared, bid, levers, allocation, menu, known)
    return {
        name: rules.with_reserve(RULES[name].price(slate), slate.bid, slate.is_ad, levers.reserve)
        for name in pricing.rules
    }


def priced_slate(
    networks: dict[str, Params],
    pricing: PricingConfig,
    prepared: PreparedRequest,
    bid: jax.Array,
    levers: Levers,
    allocation: Allocation,
    menu: Menu,
    known: Counterfactuals,
) -> PricedSlate:
    """What payment rules may read of a slate; arguments as `prices`."""
    places = jnp.arange(prepared.item.shape[0])
    shown = jnp.isin(places, allocation.candidate)
    losing = prepared.is_ad & ~shown & (bid >= levers.reserve)
    best = jnp.argmax(menu.value)
    left = value_to_others(menu, bid, levers, allocation.candidate)[:, best]
    return PricedSlate(
        is_ad=allocation.is_ad,
        bid=jnp.where(allocation.is_ad, allocation.bid, 0.0),
        quality=prepared.quality[jnp.maximum(allocation.candidate, 0)],
        clicks=menu.pctr[best],
        losing_score=jnp.max(bid * prepared.quality, where=losing, initial=0.0),
        cost=known.without - left,
        context=context_of(prepared, bid, levers, allocation, menu, known),
        networks=networks,
        hidden=pricing.hidden,
    )


def context_of(
    prepared: PreparedRequest,
    bid: jax.Array,
    levers: Levers,
    allocation: Allocation,
    menu: Menu,
    known: Counterfactuals,
) -> Context:
    """What the payment network sees of each slot's ad (25).

    The other ads' bids come as prices that this ad might owe per click: its matching bids, what
    showing it costs the others, and Myerson's price as far as a few other bids of the ad tell. The
    unit is the ad's price scale. All of this depends on the ad's own bid through slate and menu
    alone.

    Args:
      prepared: the request.
      bid: `[N]` float32 currency per click, 0 for organic items.
      levers: run-time settings.
      allocation: its slate.
      menu: what it was chosen from.
      known: counterfactuals of the slots' ads, `[K]`.

    Returns:
      The context, all `[K, ...]`; that of organic items and empty slots means nothing.
    """
    matching = matching_bids(prepared, bid, allocation.candidate)
    clicks = allocation.prediction.click_poi
    costs = externality(menu, bid, levers, allocation.candidate, known.without)
    owed = jnp.stack([*costs, probed_myerson_price(known, clicks)], axis=-1)
    reach = known.clicks / jnp.maximum(clicks, _NO_CLICKS)[:, None]
    return Context(
        slate=allocation.prediction.states,
        others=jnp.concatenate([matching, owed], axis=-1),
        reach=jnp.minimum(reach, _FAR),
        exposure=jnp.exp(allocation.log_z) * clicks,
        scale=price_scale(matching),
    )
