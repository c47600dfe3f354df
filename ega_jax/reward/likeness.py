"""How an item compares with others: those in a history, in a request, in a slate.

Attention without normalisation: it keeps the number of similar items. What a user did before, what
else could be shown, and what stands above in the slate act on a click through likeness and through
how many items are alike.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ega_jax.generation.transformer import linear

FLOOR = 1e-2  # Of a density: items farther away than that are all equally unlike.


class Likeness(nn.Module):
    """Likeness of items in the eyes of `H` heads, each with a space of its own."""

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
        """Compares some items with others by direction and by distance.

        Args:
          here: `[..., K, H, D / H]` places of the items in question.
          there: `[..., L, H, D / H]` places of those they are compared with.
          weight: at least 0, broadcastable to `[..., H, K, L]`: how much each of the L counts.

        Returns:
          `[..., K, 2 H]` float32. Per head the weighted sum of inner products, divided by the
          root of the width: the match. Then per head the log of the weighted sum of
          `exp(-distance)`, the distance being the mean squared difference: the log-density.
        """
        here, there = here.astype(jnp.float32), there.astype(jnp.float32)
        width = here.shape[-1]
        square = lambda x: jnp.moveaxis(jnp.mean(x**2, axis=-1), -1, -2)
        product = jnp.einsum("...khd,...lhd->...hkl", here, there)
        distance = square(here)[..., :, None] + square(there)[..., None, :] - 2 * product / width
        match = jnp.sum(weight * product, axis=-1) * width**-0.5
        density = jnp.sum(weight * jnp.exp(-jnp.maximum(distance, 0.0)), axis=-1)
        both = jnp.concatenate([match, jnp.log(density + FLOOR)], axis=-2)
        return jnp.moveaxis(both, -2, -1)
