"""Which slates the policy gradient (32) makes likelier, and how much each item is credited.

| estimator | slates | credit of an item |
|-----------|--------|-------------------|
| `contribution` | the winner of the menu | its marginal contribution (31), as in the paper |
| `leave_one_out` | drawn from the policy | the slate's value less the other draws' mean |
| `likeliest` | drawn from the policy | the slate's value less the likeliest slate's |

The last two estimate the gradient of the policy's expected value without bias, up to its scale
(Kool, van Hoof & Welling 2019; Rennie et al., arXiv 1612.00563). The first does not: its slate is
the best of a menu and no sample, so the gradient makes winning slates likelier.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.contributions import contributions
from ega_jax.auction.ega import EGA
from ega_jax.auction.system import Menu, PreparedRequest
from ega_jax.generation.slate_policy import Path

__all__ = ["ESTIMATORS", "Credits", "Estimator"]


@struct.dataclass
class Credits:
    """`G` slates of each request, and the credit of their items."""

    path: Path  # [B, G] decoding steps of the slates.
    credit: jax.Array  # [B, G, K] float32 currency; ignored in empty slots.
    value: jax.Array  # [B, G] float32 values of the slates, in currency.


Estimator = Callable[[EGA, PreparedRequest, chex.PRNGKey, int], Credits]


def by_contribution(
    system: EGA, prepared: PreparedRequest, key: chex.PRNGKey, num_samples: int
) -> Credits:
    """Credits the items of the winning slate with their marginal contributions (31); G is 1.

    Args:
      system: searches for the slates.
      prepared: the requests `[B]`, from a `vmap` of `prepare`.
      key: not used; nothing is sampled.
      num_samples: not used.
    """
    del key, num_samples
    found = contributions(system, prepared)
    path = _paths(system, prepared, found.candidate[:, None])
    return Credits(path, found.contribution[:, None], found.value[:, None])


def by_leave_one_out(
    system: EGA, prepared: PreparedRequest, key: chex.PRNGKey, num_samples: int
) -> Credits:
    """Credits a drawn slate with its value less the mean value of the request's other draws.

    Args:
      system: draws the slates.
      prepared: the requests `[B]`, from a `vmap` of `prepare`.
      key: random key.
      num_samples: G, at least 2.
    """
    drawn = _draw(system, prepared, key, num_samples)
    gain = drawn.value - drawn.value[:, :1]  # Equal draws get exactly 0.
    others = (gain.sum(-1, keepdims=True) - gain) / (num_samples - 1)
    return _by_slate(system, prepared, drawn, gain - others)


def by_likeliest(
    system: EGA, prepared: PreparedRequest, key: chex.PRNGKey, num_samples: int
) -> Credits:
    """Credits a drawn slate with its value less that of the slate whose every code is likeliest.

    Arguments as in `by_leave_one_out`; G is at least 1.
    """
    drawn = _draw(system, prepared, key, num_samples)
    greedy = dataclasses.replace(system, config=dataclasses.replace(system.config, num_beams=1))
    likeliest = jax.vmap(greedy.find_menu)(prepared).value
    return _by_slate(system, prepared, drawn, drawn.value - likeliest)


ESTIMATORS: dict[str, Estimator] = {
    "contribution": by_contribution,
    "leave_one_out": by_leave_one_out,
    "likeliest": by_likeliest,
}


def _draw(system: EGA, prepared: PreparedRequest, key: chex.PRNGKey, num_samples: int) -> Menu:
    keys = jax.random.split(key, prepared.memory.history_poi.shape[0])
    draw = lambda prepared, key: system.draw_menu(prepared, key, num_samples)
    return jax.vmap(draw)(prepared, keys)


def _by_slate(system: EGA, prepared: PreparedRequest, drawn: Menu, gain: jax.Array) -> Credits:
    """Credits all items of a slate with its gain `[B, G]`."""
    credit = jnp.broadcast_to(gain[..., None], drawn.candidate.shape)
    return Credits(_paths(system, prepared, drawn.candidate), credit, drawn.value)


def _paths(system: EGA, prepared: PreparedRequest, candidate: jax.Array) -> Path:
    """The decoding steps of slates `[B, G, K]`."""
    of_one = jax.vmap(system.path, in_axes=(None, 0))
    return jax.vmap(of_one)(prepared, candidate)
