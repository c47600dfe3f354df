"""Converting uniform draws to choices, so that a function calls the random generator only once.

Each uniform in [0, 1) gives one choice. Compiling a call of the random generator costs far more
time than running it.
"""

import jax
import jax.numpy as jnp
from flax import struct

STRIDES = (7919, 10007, 12007, 15013, 17011, 20011, 23003, 25013)  # Primes.


@struct.dataclass
class Groups:
    """Ids sorted by group, so that one gather draws a member of a group."""

    members: jax.Array  # [M] int32 ids, group after group.
    start: jax.Array  # [G + 1] int32, where each group starts in `members`.

    def draw(self, uniform: jax.Array, group: jax.Array) -> jax.Array:
        """Draws a member of each group; for an empty group, a member of the next one."""
        start = self.start[group]
        place = start + below(uniform, self.start[group + 1] - start)
        return self.members[jnp.minimum(place, len(self.members) - 1)]


def below(uniform: jax.Array, bound: jax.Array | int) -> jax.Array:
    """Draws an integer in `[0, bound)` for each uniform; 0 where the bound is 0."""
    return (uniform * bound).astype(jnp.int32)


def choose(uniform: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Draws indices `[...]` of the last axis of `[..., N]`; never one of probability 0."""
    bounds = jnp.cumsum(probabilities, axis=-1)
    return jnp.argmax(bounds > uniform[..., None] * bounds[..., -1:], axis=-1)


def distinct(uniform: jax.Array, members: jax.Array, count: int) -> jax.Array:
    """Draws `[B, count]` members, distinct within a row, from uniforms `[2, B]`.

    A row starts at a random member and takes steps of a stride coprime to the number of members.
    """
    n = len(members)
    strides = jnp.array([p % n for p in STRIDES if n % p])
    start, stride = below(uniform[0], n), strides[below(uniform[1], len(strides))]
    return members[(start[:, None] + stride[:, None] * jnp.arange(count)[None, :]) % n]
