"""The embedding of a request's context for the stages of the cascade."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ega_jax.generation.transformer import row_wise_dot
from ega_jax.types import ContextScale


class ContextEmbedding(nn.Module):
    """Projects standardised contexts; models declare it only if requests have a context."""

    scale: ContextScale
    width: int
    dtype: str

    @nn.compact
    def __call__(self, context: jax.Array | None) -> jax.Array:
        """Embeds contexts `[..., X]` as `[..., D]`.

        Raises:
          ValueError: there is no context.
        """
        if context is None:
            raise ValueError(f"the model reads a context of {self.scale.width} values")
        dense = nn.Dense(self.width, dtype=self.dtype, dot_general=row_wise_dot)
        return dense(self.scale.standardised(context))


def appended(x: jax.Array, where: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Appends a position `[..., D]` that is never masked to a history `[..., T, D]`.

    Args:
      x: the embedded behaviours.
      where: `[..., T]` bool, False at padding.
      position: the embedded context.

    Returns:
      The `T + 1` positions and their mask.
    """
    always = jnp.ones_like(where[..., :1])
    return jnp.concatenate([x, position[..., None, :]], -2), jnp.concatenate([where, always], -1)
