"""Residual quantisation: layer j quantises what layers 1..j-1 left over (sec. 4.1.2).

`n` vectors of width `E` against codebooks `[C, W, E]`; also the figures by which a set of codes is
judged. Everything is pure and runs under `jit`, `vmap` and `pmap`, but for the leaves of a whole
catalogue, which are counted on the host.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CHUNK = 4096  # Vectors compared with a codebook at a time: bounds the [CHUNK, W] distances.


def nearest(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """The nearest code of each vector; the lowest one on ties.

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
    """Quantises layer by layer and keeps what each layer was given.

    Gradients reach `x` through the residuals, never through the choice of a code.

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
      [n, C] int32 codes and [n, E] the vectors they stand for.
    """
    codes, _ = quantize_layers(x, codebooks)
    return codes, reconstruct(codes, codebooks)


def reconstruct(codes: jax.Array, codebooks: jax.Array) -> jax.Array:
    """The vectors that codes stand for: the sum of their codewords.

    Args:
      codes: [n, C] int.
      codebooks: [C, W, E].

    Returns:
      [n, E].
    """
    return jax.vmap(lambda codebook, code: codebook[code])(codebooks, codes.T).sum(axis=0)


def counts(codes: jax.Array, num_codes: int) -> jax.Array:
    """How many of `codes` [n, C] carry each code of each layer, [C, W] int32."""
    return jax.vmap(lambda column: jnp.bincount(column, length=num_codes))(codes.T)


def usage(codes: jax.Array, num_codes: int) -> jax.Array:
    """Share of the W codes of each layer that some of `codes` [n, C] carry, [C]."""
    return jnp.mean(counts(codes, num_codes) > 0, axis=-1)


def perplexity(codes: jax.Array, num_codes: int) -> jax.Array:
    """Exponential of the entropy of each layer of `codes` [n, C], [C]; W where all are equal."""
    share = counts(codes, num_codes) / codes.shape[0]
    return jnp.exp(jax.scipy.special.entr(share).sum(axis=-1))


def r2(x: jax.Array, approximation: jax.Array) -> jax.Array:
    """Share of the variance of `x` [n, E] that `approximation` [n, E] explains, over all features.

    Returns 0 where `x` has no variance.
    """
    variance = jnp.sum((x - x.mean(axis=0, keepdims=True)) ** 2)
    error = jnp.sum((x - approximation) ** 2)
    return jnp.where(variance > 0, 1 - error / jnp.where(variance > 0, variance, 1), 0)


def leaf_sizes(codes: np.ndarray) -> np.ndarray:
    """Items `[leaves]` int64 under each leaf of a catalogue's `codes` [n, C]; on the host."""
    return np.unique(codes, axis=0, return_counts=True)[1]


def collision_rate(sizes: np.ndarray) -> float:
    """Share of a catalogue's items that share all their codes with another, from `leaf_sizes`."""
    return float(sizes[sizes > 1].sum() / sizes.sum())
