"""Similarity of an item to sets of items: the history, the organic items and the rest of the slate.

It resembles attention without normalisation, so it keeps the number of similar items. The click
probability depends on both the similarity and the number of similar items in these sets.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ega_jax.generation.transformer import linear

FLOOR = 1e-2  # Added to a density before the log, which saturates for dissimilar items.


class Likeness(nn.Module):
    """Similarity of items in the embedding spaces of `H` heads."""

    width: int  # D
    num_heads: int  # H
    dtype: str

    def setup(self):
        """Declares the projection to all heads' spaces."""
        self.place = linear(self.width, self.dtype)

    def places(self, x: jax.Array) -> jax.Array:
        """Projects items with features `x [..., L, E]` to all heads: `[..., L, H, D / H]`."""
        return self.place(x).reshape(*x.shape[:-1], self.num_heads, -1)

    def __call__(self, here: jax.Array, there: jax.Array, weight: jax.Array) -> jax.Array:
        """Compares `K` items with `L` others, by inner product and by distance.

        Args:
          here: `[..., K, H, D / H]` projections of the items to describe.
          there: `[..., L, H, D / H]` projections of the items to compare with.
          weight: at least 0, broadcastable to `[..., H, K, L]`: weight of each of the L items.

        Returns:
          `[..., K, 2 H]` float32. First, per head, the match: the weighted sum of inner products,
          divided by the root of the head width. Then, per head, the log-density: the log of
          `FLOOR` plus the weighted sum of `exp(-distance)`, with the mean squared difference as
          distance.
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
