"""The residual-quantised autoencoder (RQ-VAE) of semantic tokens (sec. 4.1.2).

An encoder maps an embedding to a latent, `C` codebooks quantise it layer by layer, and a decoder
reconstructs the embedding from the codewords. Encoder and decoder are trained by gradient, with a
straight-through estimator for the quantiser. The codebooks are exponential moving averages of the
residuals assigned to each code. The loss function returns the new codebooks, so a training step is
pure.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.quantization import autoencoder, kmeans, residual
from ega_jax.quantization.autoencoder import RQVAEConfig
from ega_jax.types import LossFn, Metrics, Params


@struct.dataclass
class Variables:
    """Variables that are not trained by gradient."""

    mean: jax.Array  # [E] mean of the embeddings.
    scale: jax.Array  # [E] their standard deviation, 1 for constant features.
    codebooks: jax.Array  # [C, W, L]
    counts: jax.Array  # [C, W] moving average of a code's items per batch, divided by B / W.
    sums: jax.Array  # [C, W, L] moving average of the sum of their residuals, likewise divided.


def init(key: jax.Array, config: RQVAEConfig, embeddings: jax.Array) -> tuple[Params, Variables]:
    """Initialises the networks at random and the codebooks by residual k-means of latents.

    Args:
      key: PRNG key.
      config: sizes.
      embeddings: [n, E] data to fit the codebooks to, `n` at least W.

    Returns:
      Parameters of encoder and decoder, and the variables.
    """
    chex.assert_rank(embeddings, 2)
    key_params, key_codes = jax.random.split(key)
    mean, scale = autoencoder.moments(embeddings)
    params = autoencoder.init_params(key_params, config, embeddings.shape[-1])
    x = autoencoder.standardise(embeddings, mean, scale)
    latent = autoencoder.encode(config, params, x)
    sizes = kmeans.KMeansConfig(config.num_layers, config.num_codes)
    codebooks = kmeans.residual_kmeans(key_codes, latent, sizes)
    counts = jnp.ones(codebooks.shape[:2])
    sums = counts[..., None] * codebooks
    return params, Variables(mean, scale, codebooks, counts, sums)


def make_loss(config: RQVAEConfig, axis_name: str | None = None) -> LossFn:
    """Makes the loss of a training step.

    Args:
      config: sizes and weights.
      axis_name: axis of the replicas under `pmap`; batches are gathered over it, so all replicas
        keep equal codebooks.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`. `batch` holds
      `embedding` [B, E] float32 and optionally `where` [B] bool, False at padding. The loss is the
      mean over items of two terms: the squared error of the standardised embedding, summed over
      features, plus the weighted commitment loss. If the error were averaged over features, the
      commitment loss would dominate and collapse the codebooks.
    """

    def loss(
        params: Params, variables: Variables, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Variables]]:
        embedding = batch["embedding"]
        where = batch.get("where", jnp.ones(embedding.shape[0], bool))
        x = autoencoder.standardise(embedding, variables.mean, variables.scale)
        latent = autoencoder.encode(config, params, x)
        codes, residuals = residual.quantize_layers(latent, variables.codebooks)
        quantized = residual.reconstruct(codes, variables.codebooks)
        through = latent + lax.stop_gradient(quantized - latent)
        rebuilt = autoencoder.decode(config, params, through, x.shape[-1])

        reconstruction = _mean(jnp.sum((x - rebuilt) ** 2, axis=-1), where)
        commitment = _mean(_commitment(residuals, latent - quantized), where)
        total = reconstruction + config.commitment * commitment
        seen = lax.stop_gradient((residuals, codes, where))
        variables = learn_codebooks(config, variables, *_gather(seen, axis_name), key)
        metrics: Metrics = {
            "reconstruction": reconstruction,
            "commitment": commitment,
            "perplexity": _perplexity(variables.counts),
        }
        return total, (metrics, variables)

    return loss


def learn_codebooks(
    config: RQVAEConfig,
    variables: Variables,
    residuals: jax.Array,
    codes: jax.Array,
    where: jax.Array,
    key: jax.Array,
) -> Variables:
    """Sets each codeword to the moving average of its residuals; reinitialises weak codes.

    A code with too few items is moved into a cluster of the batch, drawn in proportion to cluster
    size; see `kmeans.split_clusters`.

    Args:
      config: sizes, and the decay of the moving averages.
      variables: codebooks and moving averages before the batch.
      residuals: [C, B, L] the residuals that each layer quantised.
      codes: [B, C] int32 the codes that each layer chose.
      where: [B] bool, False at padding.
      key: PRNG key.

    Returns:
      Variables after the batch.
    """
    mean_count = jnp.maximum(where.sum(), 1) / config.num_codes

    def layer(
        codebook: jax.Array,
        running: tuple[jax.Array, jax.Array],
        left: jax.Array,
        code: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        seen = kmeans.code_sums(left, code, where, config.num_codes)
        count, total = jax.tree.map(
            lambda old, new: config.decay * old + (1 - config.decay) * new / mean_count,
            running,
            seen,
        )
        weak = count < kmeans.WEAK_SHARE
        fresh = kmeans.split_clusters(key, left, codebook[code], where, config.num_codes)
        count = jnp.where(weak, 1.0, count)
        total = jnp.where(weak[:, None], fresh, total)
        return total / count[:, None], (count, total)

    keys = jax.random.split(key, config.num_layers)
    running = (variables.counts, variables.sums)
    codebooks, (counts, sums) = jax.vmap(layer)(
        variables.codebooks, running, residuals, codes.T, keys
    )
    return dataclasses.replace(variables, codebooks=codebooks, counts=counts, sums=sums)


def _commitment(residuals: jax.Array, last: jax.Array) -> jax.Array:
    """Squared distance of each layer's residual to its codeword, summed over layers, [B].

    The difference of a layer's residual and its codeword is the next layer's residual.
    """
    errors = jnp.concatenate([residuals[1:], last[None]])
    return jnp.sum(errors**2, axis=(0, -1))


def _mean(x: jax.Array, where: jax.Array) -> jax.Array:
    """Mean of `x` [B] over `where`; 0 if `where` is all False."""
    return jnp.sum(jnp.where(where, x, 0)) / jnp.maximum(where.sum(), 1)


def _perplexity(counts: jax.Array) -> jax.Array:
    """Perplexity of code counts [C, W], averaged over layers."""
    share = counts / counts.sum(axis=-1, keepdims=True)
    return jnp.mean(jnp.exp(jax.scipy.special.entr(share).sum(axis=-1)))


def _gather(
    seen: tuple[jax.Array, jax.Array, jax.Array], axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gathers the batches of all replicas: residuals along axis 1, codes and mask along axis 0."""
    if axis_name is None:
        return seen
    residuals, codes, where = seen
    codes, where = (lax.all_gather(x, axis_name, tiled=True) for x in (codes, where))
    return lax.all_gather(residuals, axis_name, axis=1, tiled=True), codes, where
