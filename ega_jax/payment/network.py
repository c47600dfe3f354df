"""The payment network: what an ad pays for a click (paper sec. 4.3.3, eqs. 25-26).

Two heads. `rate` is the paper's: a share of the own bid. It knows the own bid only through the
ad's exposure, so it cannot be truthful where the allocation is a step function of the bid: the
price would have to be threshold / own bid, as a rate. `threshold` is a price that neither the
own bid nor the exposure influences but through slate and menu, charged up to the own bid: a posted
price, as in a second price auction. Individual rationality (5) holds by construction with either.
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

_LEAST = float(jnp.finfo(jnp.float32).tiny)  # Stands for 0 in quotients and logarithms.
_LARGEST_LOG = 60.0  # Of a quotient of currencies: keeps every price and gradient finite.
_LARGEST = math.exp(_LARGEST_LOG)
_LEAST_EXPOSURE = 1e-9  # Exposures below it look the same to the network.
_SUMMARY = 4  # Numbers that the slate's representation is boiled down to.


@struct.dataclass
class Context:
    """What the network may see of an ad in its slate."""

    slate: jax.Array  # [..., F] representation of the ad's slot, free of bids.
    others: jax.Array  # [..., M] currency, at least 0: what the other ads' bids ask of this ad.
    reach: jax.Array  # [..., G] clicks at other bids of the ad, as multiples of its clicks.
    exposure: jax.Array  # [...] allocation probability times click probability, z * pctr.
    scale: jax.Array  # [...] currency, above 0: of the request, free of the ad's own bid.


@dataclasses.dataclass(frozen=True)
class PaymentConfig:
    """Which head, and its layers.

    Raises:
      UserError: the head is not one of `HEADS`.
    """

    head: str = setting("threshold", choices=HEADS)
    hidden: tuple[int, ...] = setting((128, 32, 10), at_least=1)  # Widths of its layers.

    def __post_init__(self):
        if self.head not in HEADS:
            raise UserError(f"payment head {self.head!r} is not one of {', '.join(HEADS)}")


class Tower(nn.Module):
    """An MLP with one output `[...]`; it starts out as 0 everywhere.

    The slate's representation `[..., F]` comes in through few numbers: tables of reports have far
    fewer sessions than it has features, and sessions would be remembered by it.
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
    """Returns parameters for contexts of the same `F`, `M` and `G` as `context`, a sample."""
    return Tower(config.hidden).init(key, context.slate, _features(config, context))["params"]


def price(
    params: Params,
    config: PaymentConfig,
    context: Context,
    bid: jax.Array,
    straight_through: bool = False,
) -> jax.Array:
    """Price of a click (25)-(26).

    Args:
      params: from `init`.
      config: the head.
      context: of the ads; leading axes `[...]`.
      bid: `[...]` of the ads, currency per click, at least 0.
      straight_through: differentiates a threshold as if the bid did not cap it.

    Returns:
      `[...]` currency per click, between 0 and the bid, both included, with no rounding error.
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
    """Inputs `[..., I]` beside the slate: bids relative to the scale, on a log scale."""
    scale = jnp.maximum(context.scale, _LEAST)[..., None]
    others = jnp.log1p(jnp.minimum(context.others / scale, _LARGEST))
    features = [others, context.reach]
    if config.head == "rate":
        features.append(jnp.log(jnp.maximum(context.exposure, _LEAST_EXPOSURE))[..., None])
    return jnp.concatenate(features, axis=-1)
