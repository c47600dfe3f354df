"""k-means and residual k-means: a tokenizer without an encoder (sec. 4.1.2).

Residuals of high-dimensional embeddings resemble one ball around the origin. If a centroid starts
at a data point, all other points are nearer to the centre of the ball: the centroid attracts only
that point, and most items end up with the same code. So a centroid is initialised, and
reinitialised if it has few points, only part of the way from a cluster's centroid to one of the
cluster's points. This splits the cluster.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ega_jax.quantization import residual
from ega_jax.setting import setting

WEAK_SHARE = 0.25  # A code with fewer points than this share of the mean is reinitialised.
STEP_TO_ROW = 0.3  # New centroids start this share of the way from a centroid to a data point.


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
    """Sizes and iterations of residual k-means."""

    num_layers: int = setting(3, at_least=1)  # C
    num_codes: int = setting(256, at_least=2)  # W
    num_iterations: int = setting(25, at_least=1)  # Lloyd steps per layer.


def code_sums(
    x: jax.Array, codes: jax.Array, where: jax.Array, num_codes: int
) -> tuple[jax.Array, jax.Array]:
    """Count and sum of the vectors of each code.

    Args:
      x: [n, E] vectors.
      codes: [n] int32 codes of the vectors.
      where: [n] bool, whether the vector counts.
      num_codes: W.

    Returns:
      [W] counts and [W, E] sums, float32.
    """
    weight = where.astype(x.dtype)
    add = functools.partial(jax.ops.segment_sum, segment_ids=codes, num_segments=num_codes)
    return add(weight), add(x * weight[:, None])


def split_clusters(
    key: jax.Array,
    x: jax.Array,
    centre: jax.Array,
    where: jax.Array,
    num_codes: int,
    step: float | jax.Array = STEP_TO_ROW,
) -> jax.Array:
    """Draws new codewords by splitting clusters, in proportion to cluster size.

    Args:
      key: PRNG key.
      x: [n, E] vectors.
      centre: [n, E] the codeword of each vector.
      where: [n] bool, whether the vector may be drawn.
      num_codes: W, codewords to draw; drawn with replacement if `n` is less.
      step: position of a new codeword between the centre (0) and the drawn vector (1).

    Returns:
      [W, E] codewords.
    """
    n = x.shape[0]
    row = jax.random.choice(key, n, (num_codes,), replace=n < num_codes, p=where.astype(x.dtype))
    return centre[row] + step * (x[row] - centre[row])


@functools.partial(jax.jit, static_argnames=("num_codes", "num_iterations"))
def kmeans(key: jax.Array, x: jax.Array, num_codes: int, num_iterations: int = 25) -> jax.Array:
    """Lloyd's algorithm with reinitialisation of weak centroids.

    In the last third of the steps, only empty centroids are reinitialised, and exactly at a data
    point, so that few codes stay empty.

    Args:
      key: PRNG key.
      x: [n, E] vectors, `n` at least W.
      num_codes: W.
      num_iterations: Lloyd steps.

    Returns:
      [W, E] centroids.
    """
    chex.assert_rank(x, 2)
    everywhere = jnp.ones(x.shape[0], bool)
    floor = WEAK_SHARE * x.shape[0] / num_codes

    def step(i: int, centroids: jax.Array) -> jax.Array:
        settling = 3 * i >= 2 * num_iterations
        codes = residual.nearest(x, centroids)
        count, total = code_sums(x, codes, everywhere, num_codes)
        fresh = split_clusters(
            jax.random.fold_in(key, i),
            x,
            centroids[codes],
            everywhere,
            num_codes,
            step=jnp.where(settling, 1.0, STEP_TO_ROW),
        )
        weak = count <= jnp.where(settling, 0, floor)
        return jnp.where(weak[:, None], fresh, total / jnp.maximum(count, 1)[:, None])

    middle = jnp.broadcast_to(x.mean(axis=0, keepdims=True), x.shape)
    key_seeds = jax.random.fold_in(key, num_iterations)
    seeds = split_clusters(key_seeds, x, middle, everywhere, num_codes)
    return lax.fori_loop(0, num_iterations, step, seeds)


@functools.partial(jax.jit, static_argnames="config")
def residual_kmeans(key: jax.Array, x: jax.Array, config: KMeansConfig) -> jax.Array:
    """Fits k-means layer by layer, each layer on the residuals of the preceding layers.

    Args:
      key: PRNG key.
      x: [n, E] vectors, `n` at least W.
      config: sizes and steps.

    Returns:
      [C, W, E] codebooks.
    """

    def layer(left: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        codebook = kmeans(key, left, config.num_codes, config.num_iterations)
        return left - codebook[residual.nearest(left, codebook)], codebook

    _, codebooks = lax.scan(layer, x, jax.random.split(key, config.num_layers))
    return codebooks
