"""Normalisation and attention with hand-written gradients.

The gradients that JAX derives are correct but slow on CPUs: XLA stores broadcasts of the scale, of
the norm and of the softmax's denominator as full arrays, and masks the probabilities twice. These
functions need fewer passes over memory and keep fewer arrays until the backward pass.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ega_jax.types import IMPOSSIBLE

EPSILON = 1e-6


class RMSNorm(nn.Module):
    """`nn.RMSNorm` over the last axis: same parameter, same values, faster gradient."""

    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `x [..., D]`; the statistics are float32."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return rms_norm(x, scale).astype(self.dtype)


@jax.custom_vjp
def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Divides `x [..., D]` by its root mean square and multiplies by `scale [D]`; float32."""
    return _rms_norm(x, scale)[0]


def _rms_norm(x, scale):
    """Returns the normalised `x` and what the gradient needs."""
    wide = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + EPSILON)
    return wide * (inverse * scale), (x, scale, inverse)


def _rms_norm_gradient(saved, gradient):
    """Both sums, over rows and over columns, are matrix products with `gradient * x`."""
    x, scale, inverse = saved
    wide = x.astype(jnp.float32)
    products = (gradient * wide).reshape(-1, x.shape[-1])
    for_scale = jnp.dot(inverse.reshape(-1), products, precision="highest")
    along = jnp.dot(products, scale, precision="highest").reshape(inverse.shape) / x.shape[-1]
    for_x = inverse * (gradient * scale - wide * (inverse * inverse * along))
    return for_x.astype(x.dtype), for_scale


rms_norm.defvjp(_rms_norm, _rms_norm_gradient)


def masked_softmax(scores: jax.Array, where: jax.Array) -> jax.Array:
    """Softmax in float32 over the last axis, restricted to `where`; 0 if `where` is all False."""
    scores = jnp.where(where, scores.astype(jnp.float32), IMPOSSIBLE)
    return jnp.where(where, jax.nn.softmax(scores, axis=-1), 0.0)


@jax.custom_vjp
def attend(query: jax.Array, keys: jax.Array, values: jax.Array, where: jax.Array) -> jax.Array:
    """Multi-head dot-product attention; the result is 0 for a fully masked query.

    Args:
      query: `[..., Q, H, D / H]`.
      keys: `[..., L, H, D / H]`, with the leading axes of `query`.
      values: `[..., L, H, D / H]`, likewise.
      where: bool, broadcastable to `[..., H, Q, L]`: the positions each query may attend to.

    Returns:
      `[..., Q, H, D / H]`.
    """
    return _attend(query, keys, values, where)[0]


def _attend(query, keys, values, where):
    """Returns the mixed values and what the gradient needs."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, keys) * query.shape[-1] ** -0.5
    probs = masked_softmax(scores, where).astype(values.dtype)
    mixed = jnp.einsum("...hqk,...khd->...qhd", probs, values)
    return mixed, (query, keys, values, probs)


def _attend_gradient(saved, gradient):
    """A masked position has probability 0, so it gets gradient 0 without another mask."""
    query, keys, values, probs = saved
    for_probs = jnp.einsum("...qhd,...khd->...hqk", gradient, values).astype(jnp.float32)
    wide = probs.astype(jnp.float32)
    for_scores = wide * (for_probs - jnp.sum(wide * for_probs, axis=-1, keepdims=True))
    for_scores = (for_scores * query.shape[-1] ** -0.5).astype(query.dtype)
    for_query = jnp.einsum("...hqk,...khd->...qhd", for_scores, keys)
    for_keys = jnp.einsum("...hqk,...qhd->...khd", for_scores, query)
    for_values = jnp.einsum("...hqk,...qhd->...khd", probs, gradient)
    return for_query, for_keys, for_values, None


attend.defvjp(_attend, _attend_gradient)
