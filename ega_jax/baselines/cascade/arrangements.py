"""Placing ads among organic items: the two queues, and the slates of an arrangement.

Both queues keep their order, so the slots that hold ads determine the slate. All functions take
one request; `vmap` them over a batch.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

NO_LIMIT = 2**30


@struct.dataclass
class Queues:
    """The candidates of a request, and the queues of ads and organic items to merge."""

    state: jax.Array  # [N, F] user-dependent state of the candidate, from the ranker.
    quality: jax.Array  # [N] float32 click probability, from the ranker.
    bid: jax.Array  # [N] float32 currency per click, 0 for organic items.
    is_ad: jax.Array  # [N] bool.
    ads: jax.Array  # [L] int32 candidates in order, -1 after the last.
    organic: jax.Array  # [O] int32 candidates in upstream order, -1 after the last.


def queued(queues: Queues) -> jax.Array:
    """Returns `[N]` bool: whether the candidate is in the queue of ads."""
    number = queues.is_ad.shape[0]
    place = jnp.where(queues.ads >= 0, queues.ads, number)
    return jnp.zeros(number, bool).at[place].set(True, mode="drop")


def taken(queues: Queues, slates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the numbers of ads and of organic items `[...]` in slates `[..., K]`."""
    shown, is_ad = slates >= 0, queues.is_ad[slates]
    return (shown & is_ad).sum(-1), (shown & ~is_ad).sum(-1)


def at(queue: jax.Array, place: jax.Array) -> jax.Array:
    """Returns the candidates at positions of a queue, -1 after its end."""
    return queue.at[place].get(mode="fill", fill_value=-1)


def ecpm_scale(queues: Queues) -> jax.Array:
    """Returns the mean `bid * quality` `[]` of the queued ads, in currency; 1 if the mean is 0."""
    where = queued(queues)
    total = jnp.where(where, queues.bid * queues.quality, 0.0).sum()
    mean = total / jnp.maximum(where.sum(), 1)
    return jnp.where(mean > 0, mean, 1.0)


def arrangements(screen: int) -> np.ndarray:
    """Returns all assignments `[2 ** screen, screen]` of a screen's slots to ads (True)."""
    return (np.arange(2**screen)[:, None] >> np.arange(screen)) % 2 == 1


def candidates_of_screen(
    size: int,
    queues: Queues,
    slate: jax.Array,
    screen: jax.Array,
    max_ads: chex.Numeric = NO_LIMIT,
    min_gap: chex.Numeric = 0,
) -> tuple[jax.Array, jax.Array]:
    """Returns the slates after each arrangement of a screen, and which are admissible.

    A slot for an ad takes the next ad, another slot the next organic item. An arrangement is valid
    if it keeps the limits, all its ads exist, and no empty slot precedes a filled one. The valid
    arrangements that show the most items are admissible; there is always one.

    Args:
      size: slots per screen.
      queues: the queues to merge.
      slate: `[K]` int32 candidates of the screens before, -1 elsewhere.
      screen: `[]` int32 number of the screen, from 0.
      max_ads: most ads in the slate.
      min_gap: fewest organic items between two ads.

    Returns:
      Slates `[A, K]` int32, -1 where empty, and `[A]` bool: which are admissible.
    """
    pattern = arrangements(size)
    num_ads, num_organic = taken(queues, slate)
    ads = at(queues.ads, num_ads + jnp.cumsum(pattern, axis=1) - 1)
    organic = at(queues.organic, num_organic + jnp.cumsum(~pattern, axis=1) - 1)
    items = jnp.where(pattern, ads, organic)
    here = jnp.arange(slate.size) // size == screen
    slates = jnp.where(here, jnp.tile(items, slate.size // size), slate)
    exist = jnp.all(~pattern | (ads >= 0), axis=1)
    shown = slates >= 0
    no_hole = jnp.all(shown[:, :-1] | ~shown[:, 1:], axis=1)
    legal = exist & no_hole & _within_limits(queues, slates, max_ads, min_gap)
    most = jnp.max(jnp.where(legal, shown.sum(1), 0))
    return slates, legal & (shown.sum(1) == most)


def _within_limits(queues: Queues, slates: jax.Array, max_ads, min_gap) -> jax.Array:
    """Returns `[A]` bool: whether slates `[A, K]` without holes keep the limits."""
    slot = jnp.arange(slates.shape[1])
    is_ad = (slates >= 0) & queues.is_ad[slates]
    last = lax.cummax(jnp.where(is_ad, slot, -NO_LIMIT), axis=1)
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-NO_LIMIT)
    apart = jnp.all(~is_ad | (slot - before - 1 >= min_gap), axis=1)
    return apart & (is_ad.sum(1) <= max_ads)
