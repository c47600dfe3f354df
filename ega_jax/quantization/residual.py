"""Residual quantisation and metrics of codes (sec. 4.1.2).

Layer j quantises the residual of layers 1..j-1. There are `n` vectors of width `E` and codebooks
`[C, W, E]`. All functions are pure and run under `jit`, `vmap` and `pmap`, except `leaf_sizes` and
`collision_rate`, which run on the host.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CHUNK = 4096  # Vectors per batch of `nearest`; bounds the memory of the [CHUNK, W] distances.


def nearest(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """The nearest code of each vector; the lowest code in case of ties.

    Args:
      x: [n, E] vectors.
      codebook: [W, E].

    Returns:
      [n] int32 codes.
    """
    half_norm = 0.5 * jnp.sum(codebook**2, axis=-1)

    def one(vector: jax.Array) -> jax.Array:
        closeness = jnp.dot(codebook, vector, precision=lax.Precision.HIGHEST) - half_norm
        return jnp.argmax(closeness).astype(jnp.int32)

    return lax.map(one, x, batch_size=CHUNK)


def quantize_layers(x: jax.Array, codebooks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quantises layer by layer; returns the codes and the input residual of each layer.

    Gradients reach `x` through the residuals; the choice of codes has no gradient.

    Args:
      x: [n, E] vectors.
      codebooks: [C, W, E].

    Returns:
      [n, C] int32 codes and [C, n, E] residuals; layer j quantised `residuals[j]`.
    """
    chex.assert_rank([x, codebooks], [2, 3])
    chex.assert_equal_shape_suffix([x, codebooks], 1)

    def layer(residual: jax.Array, codebook: jax.Array) -> tuple[jax.Array, tuple]:
        code = nearest(lax.stop_gradient(residual), codebook)
        return residual - codebook[code], (code, residual)

    _, (codes, residuals) = lax.scan(layer, x, codebooks)
    return codes.T, residuals


def quantize(x: jax.Array, codebooks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quantises vectors.

    Args:
      x: [n, E] vectors.
      codebooks: [C, W, E].

    Returns:
      [n, C] int32 codes and [n, E] quantised vectors.
    """
    codes, _ = quantize_layers(x, codebooks)
    return codes, reconstruct(codes, codebooks)


def reconstruct(codes: jax.Array, codebooks: jax.Array) -> jax.Array:
    """Reconstructs vectors from codes, as sums of codewords.

    Args:
      codes: [n, C] int.
      codebooks: [C, W, E].

    Returns:
      [n, E].
    """
    return jax.vmap(lambda codebook, code: codebook[code])(codebooks, codes.T).sum(axis=0)


def counts(codes: jax.Array, num_codes: int) -> jax.Array:
    """The number of rows of `codes` [n, C] with each code of each layer, [C, W] int32."""
    return jax.vmap(lambda column: jnp.bincount(column, length=num_codes))(codes.T)


def usage(codes: jax.Array, num_codes: int) -> jax.Array:
    """Share of the W codes of each layer that occur in `codes` [n, C]; [C]."""
    return jnp.mean(counts(codes, num_codes) > 0, axis=-1)


def perplexity(codes: jax.Array, num_codes: int) -> jax.Array:
    """Exponential of the entropy of each layer of `codes` [n, C]; [C], W if codes are uniform."""
    share = counts(codes, num_codes) / codes.shape[0]
    return jnp.exp(jax.scipy.special.entr(share).sum(axis=-1))


def r2(x: jax.Array, approximation: jax.Array) -> jax.Array:
    """Share of the total variance of `x` [n, E] explained by `approximation` [n, E].

    Returns 0 if `x` has no variance.
    """
    variance = jnp.sum((x - x.mean(axis=0, keepdims=True)) ** 2)
    error = jnp.sum((x - approximation) ** 2)
    return jnp.where(variance > 0, 1 - error / jnp.where(variance > 0, variance, 1), 0)


def leaf_sizes(codes: np.ndarray) -> np.ndarray:
    """Number of items with each distinct row of `codes` [n, C], `[leaves]` int64; on the host."""
    return np.unique(codes, axis=0, return_counts=True)[1]


def collision_rate(sizes: np.ndarray) -> float:
    """Share of items that share all codes with another item, from `leaf_sizes`."""
    return float(sizes[sizes > 1].sum() / sizes.sum())
