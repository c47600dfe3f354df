"""Prices per click of the ads of an allocated slate, under every payment rule (sec. 4.3.3).

`RULES` is the table of payment rules. To add a rule, add one entry: its name, its function of a
`PricedSlate`, and its needs. Serving, tables and evaluation then include it. All functions take one
request; `vmap` them over a batch.
"""

import dataclasses
import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.counterfactuals import (
    Counterfactuals,
    Probes,
    externality,
    price_scale,
    probed_myerson_price,
    value_to_others,
)
from ega_jax.auction.system import Allocation, Levers, Menu
from ega_jax.payment import network, rules
from ega_jax.payment.network import Context, PaymentConfig
from ega_jax.setting import same_as, setting
from ega_jax.types import Params

_NO_CLICKS = 1e-6  # Lower bound of click probabilities as divisors.
_FAR = 3.0  # Upper bound of `Context.reach`.


class Needs(enum.Enum):
    """The inputs that a payment rule needs beside the slate and its menu."""

    NOTHING = "nothing"
    SEARCH = "another search"  # Best slates without each ad; a bid-free menu contains them.
    PROBES = "probed bids"  # Clicks of each ad at other bids, always from another search.
    NETWORK = "a payment network"  # Its inputs include clicks at probed bids.

    @property
    def probes(self) -> bool:
        """Whether the rule needs an ad's clicks at other bids."""
        return self in (Needs.PROBES, Needs.NETWORK)


@struct.dataclass
class PricedSlate:
    """The inputs of a payment rule: an allocated slate, one row per slot."""

    is_ad: jax.Array  # [K] bool.
    bid: jax.Array  # [K] float32 currency per click, 0 for organic items and in empty slots.
    quality: jax.Array  # [K] float32 click probability of the candidate alone in the first slot.
    clicks: jax.Array  # [K] float32 click probability in this slate.
    losing_score: jax.Array  # [] float32 highest bid times quality of a losing ad of the menu.
    cost: jax.Array  # [K] float32 externality of the ad, currency per impression.
    myerson: jax.Array  # [K] float32 Myerson's price of the probed bids, currency per click.
    context: Context  # [K] inputs of payment networks.
    networks: dict[str, Params]  # Rule -> parameters of its payment network.
    hidden: tuple[int, ...] = struct.field(pytree_node=False)  # Widths of the networks' layers.

    def network_price(self, head: str) -> jax.Array:
        """Prices `[K]` of the payment network of a head, currency per click."""
        config = PaymentConfig(head, self.hidden)
        return network.price(self.networks[head], config, self.context, self.bid)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A payment rule.

    Attributes:
      name: its name in `results.json`, in settings and for `Mechanism.allocate`.
      price: `PricedSlate -> [K]` currency per click; a reserve is applied afterwards.
      needs: the inputs that it needs beside slate and menu.
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


def _myerson_probed(slate: PricedSlate) -> jax.Array:
    return slate.myerson


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
        Rule("myerson_probed", _myerson_probed, Needs.PROBES),
        Rule("rate", _rate, Needs.NETWORK),
        Rule("threshold", _threshold, Needs.NETWORK),
    )
}


@dataclasses.dataclass(frozen=True)
class PricingSettings:
    """The settings of the group `payment` that define prices."""

    hidden: tuple[int, ...] = same_as(PaymentConfig, "hidden")
    # Bids at which an ad's clicks are computed, as multiples of its price scale; rising. Between
    # two probes, prices rely on interpolation. See `counterfactuals`.
    probes: tuple[float, ...] = setting(
        (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), at_least=0
    )
    # Times that two further bids of each ad are probed, where its clicks change most.
    refinements: int = setting(0, at_least=0)
    # Heads to train a payment network for, each separately on the same table.
    heads: tuple[str, ...] = setting(network.HEADS, choices=network.HEADS)


@dataclasses.dataclass(frozen=True)
class PricingConfig(PricingSettings):
    """Static configuration of prices."""

    rules: tuple[str, ...] = dataclasses.field(init=False)  # Names of the available payment rules.

    def __post_init__(self):
        object.__setattr__(self, "rules", (*self.rules_without_network, *self.heads))

    @property
    def rules_without_network(self) -> tuple[str, ...]:
        """The names of the payment rules that need no payment network."""
        lacking = {Needs.NETWORK} if self.probes else {Needs.NETWORK, Needs.PROBES}
        return tuple(name for name, rule in RULES.items() if rule.needs not in lacking)

    @property
    def probed(self) -> Probes:
        """The bids of an ad at which its clicks are computed."""
        return Probes(self.probes, self.refinements)


def prices(
    networks: dict[str, Params],
    pricing: PricingConfig,
    levers: Levers,
    allocation: Allocation,
    menu: Menu,
    known: Counterfactuals,
) -> dict[str, jax.Array]:
    """Prices per click of a slate under each of `pricing.rules`.

    Args:
      networks: parameters of the payment networks, by head.
      pricing: heads and sizes of the payment networks.
      levers: run-time settings.
      allocation: the slate.
      menu: the menu from which the slate was chosen.
      known: counterfactuals of the slots' ads, `[K]`; rules with `Needs.NOTHING` do not read them.

    Returns:
      Rule -> `[K]` float32 currency per click, from 0 to the bid; 0 for organic items.
    """
    slate = priced_slate(networks, pricing, levers, allocation, menu, known)
    least = slate.bid, slate.is_ad, allocation.reserve
    return {name: rules.with_reserve(RULES[name].price(slate), *least) for name in pricing.rules}


def priced_slate(
    networks: dict[str, Params],
    pricing: PricingConfig,
    levers: Levers,
    allocation: Allocation,
    menu: Menu,
    known: Counterfactuals,
) -> PricedSlate:
    """Builds the inputs of payment rules for a slate; arguments as in `prices`."""
    rivals, best = menu.rivals, jnp.argmax(menu.value)
    losing = rivals.loses(allocation.candidate)
    left = value_to_others(menu, levers, allocation.candidate)[:, best]
    return PricedSlate(
        is_ad=allocation.is_ad,
        bid=jnp.where(allocation.is_ad, allocation.bid, 0.0),
        quality=allocation.quality,
        clicks=menu.pctr[best],
        losing_score=jnp.max(rivals.score, where=losing, initial=0.0),
        cost=known.without - left,
        myerson=probed_myerson_price(known, allocation.prediction.click_poi),
        context=context_of(levers, allocation, menu, known),
        networks=networks,
        hidden=pricing.hidden,
    )


def context_of(
    levers: Levers, allocation: Allocation, menu: Menu, known: Counterfactuals
) -> Context:
    """The payment network's inputs for each slot's ad (25).

    The other ads' bids enter as candidate prices per click: the ad's matching bids, its
    externality, and Myerson's price estimated from the probed bids. The unit is the ad's price
    scale. All inputs depend on the ad's own bid only through slate, menu and exposure.

    Args:
      levers: run-time settings.
      allocation: the slate.
      menu: the menu from which the slate was chosen.
      known: counterfactuals of the slots' ads, `[K]`.

    Returns:
      The contexts, all `[K, ...]`; undefined for organic items and empty slots.
    """
    clicks = allocation.prediction.click_poi
    costs = externality(menu, levers, allocation.candidate, known.without)
    owed = jnp.stack([*costs, probed_myerson_price(known, clicks)], axis=-1)
    reach = known.probed / jnp.maximum(clicks, _NO_CLICKS)[:, None]
    return Context(
        slate=allocation.prediction.states,
        others=jnp.concatenate([known.matching, owed], axis=-1),
        reach=jnp.minimum(reach, _FAR),
        exposure=jnp.exp(allocation.log_z) * clicks,
        scale=price_scale(known.matching),
    )
