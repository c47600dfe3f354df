"""How many of the likes of an item there are among others: in a history, a request, a slate.

An attention without softmax: as a kernel density it counts, where a mean would not. What a user
did before, what else could be shown, and what stands above all act on a click through likeness.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ega_jax.generation.transformer import linear

FLOOR = 1e-2  # Of a density; what lies farther than this is simply unlike.


class Likeness(nn.Module):
    """Likeness of items in the eyes of `H` heads, each with a space where near means alike."""

    width: int  # D
    num_heads: int  # H
    dtype: str

    def setup(self):
        """Declares the map to all heads' spaces."""
        self.place = linear(self.width, self.dtype)

    def places(self, x: jax.Array) -> jax.Array:
        """Where items of features `x [..., L, E]` lie in each space, `[..., L, H, D / H]`."""
        return self.place(x).reshape(*x.shape[:-1], self.num_heads, -1)

    def __call__(self, here: jax.Array, there: jax.Array, weight: jax.Array) -> jax.Array:
        """Log-density of some items among others.

        Args:
          here: `[..., K, H, D / H]` places of the items in question.
          there: `[..., L, H, D / H]` places of those they are compared with.
          weight: at least 0, broadcastable to `[..., H, K, L]`: how much each of the L counts.

        Returns:
          `[..., K, H]` float32: log of the weighted sum of `exp(-distance)`, where the distance
          is the mean squared difference of places.
        """
        here, there = here.astype(jnp.float32), there.astype(jnp.float32)
        square = lambda x: jnp.moveaxis(jnp.mean(x**2, axis=-1), -1, -2)
        product = jnp.einsum("...khd,...lhd->...hkl", here, there) / here.shape[-1]
        distance = square(here)[..., :, None] + square(there)[..., None, :] - 2 * product
        density = jnp.sum(weight * jnp.exp(-jnp.maximum(distance, 0.0)), axis=-1)
        return jnp.log(jnp.moveaxis(density, -2, -1) + FLOOR)
