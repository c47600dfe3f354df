"""The payment network: the price per click of an ad (paper sec. 4.3.3, eqs. 25-26).

There are two heads. `rate` is the paper's: the price is a share of the ad's bid. Its only input
that depends directly on the bid is the ad's exposure. So it cannot be truthful if the allocation is
a step function of the bid, because the share would have to be threshold / bid. `threshold` outputs
a price that depends on the ad's bid only through slate and menu, and not on the exposure; the
charge is capped at the bid. It is a posted price, as in a second-price auction. Both heads satisfy
individual rationality (5) by construction.
"""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ega_jax.errors import UserError
from ega_jax.setting import setting
from ega_jax.types import Params

HEADS = ("rate", "threshold")

_LEAST = float(jnp.finfo(jnp.float32).tiny)  # Lower bound of divisors.
_LARGEST_LOG = 60.0  # Upper bound of the log of relative prices; keeps prices and gradients finite.
_LARGEST = math.exp(_LARGEST_LOG)
_LEAST_EXPOSURE = 1e-9  # Lower exposures are clipped to this.
_SUMMARY = 4  # Width to which the slate's representation is reduced.


@struct.dataclass
class Context:
    """The inputs of the network for an ad in its slate."""

    slate: jax.Array  # [..., F] representation of the ad's slot; contains no bids.
    others: jax.Array  # [..., M] currency per click, at least 0: prices derived from other bids.
    reach: jax.Array  # [..., G] clicks at other bids of the ad, divided by its clicks.
    exposure: jax.Array  # [...] allocation probability times click probability, z * pctr.
    scale: jax.Array  # [...] currency per click, above 0: unit of prices, independent of own bid.


@dataclasses.dataclass(frozen=True)
class PaymentConfig:
    """Head and layers of the payment network.

    Raises:
      UserError: the head is not one of `HEADS`.
    """

    head: str = setting("threshold", choices=HEADS)
    hidden: tuple[int, ...] = setting((128, 32, 10), at_least=1)  # Widths of the hidden layers.

    def __post_init__(self):
        if self.head not in HEADS:
            raise UserError(f"payment head {self.head!r} is not one of {', '.join(HEADS)}")


class Tower(nn.Module):
    """An MLP with one output `[...]`, initialised to 0 everywhere.

    The slate's representation `[..., F]` is first reduced to a few numbers. A table of reports has
    few sessions relative to `F`, so the network could otherwise memorise sessions.
    """

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, slate: jax.Array, features: jax.Array) -> jax.Array:
        """Applies the layers to a slate's representation and other features `[..., I]`."""
        if slate.shape[-1]:
            summary = nn.Dense(_SUMMARY, name="summary")(slate)
            features = jnp.concatenate([summary, features], axis=-1)
        for width in self.hidden:
            features = nn.relu(nn.Dense(width)(features))
        return nn.Dense(1, name="output", kernel_init=nn.initializers.zeros)(features)[..., 0]


def init(key: chex.PRNGKey, config: PaymentConfig, context: Context) -> Params:
    """Initial parameters, for contexts with the `F`, `M` and `G` of the example `context`."""
    return Tower(config.hidden).init(key, context.slate, _features(config, context))["params"]


def price(
    params: Params,
    config: PaymentConfig,
    context: Context,
    bid: jax.Array,
    straight_through: bool = False,
) -> jax.Array:
    """Price per click (25)-(26).

    Args:
      params: parameters, from `init`.
      config: head and layers.
      context: contexts of the ads, with leading axes `[...]`.
      bid: `[...]` bids of the ads, currency per click, at least 0.
      straight_through: whether the gradient of a threshold ignores the cap at the bid.

    Returns:
      `[...]` currency per click, from 0 to the bid; rounding never exceeds these bounds.
    """
    chex.assert_equal_shape([bid, context.exposure, context.scale])
    tower, features = Tower(config.hidden), _features(config, context)
    output = jnp.asarray(tower.apply({"params": params}, context.slate, features))
    if config.head == "rate":
        return jax.nn.sigmoid(output) * bid
    relative = jnp.expm1(jnp.minimum(jax.nn.softplus(output), _LARGEST_LOG))
    threshold = context.scale * relative
    capped = jnp.minimum(threshold, bid)
    if not straight_through:
        return capped
    return jax.lax.stop_gradient(capped) + (threshold - jax.lax.stop_gradient(threshold))


def _features(config: PaymentConfig, context: Context) -> jax.Array:
    """Inputs `[..., I]` besides the slate: log prices relative to the scale, reach, exposure."""
    scale = jnp.maximum(context.scale, _LEAST)[..., None]
    others = jnp.log1p(jnp.minimum(context.others / scale, _LARGEST))
    features = [others, context.reach]
    if config.head == "rate":
        features.append(jnp.log(jnp.maximum(context.exposure, _LEAST_EXPOSURE))[..., None])
    return jnp.concatenate(features, axis=-1)
