"""The residual-quantised autoencoder of semantic tokens (sec. 4.1.2).

An encoder maps an embedding to a latent, `C` codebooks quantise it layer by layer, and a decoder
rebuilds the embedding from the codewords. Encoder and decoder learn by gradient, passed straight
through the quantiser; the codebooks follow running means of the residuals they are given. The loss
function returns the new codebooks, so that one training step is pure.
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
    """What changes in training without a gradient."""

    mean: jax.Array  # [E] of the embeddings.
    scale: jax.Array  # [E] standard deviation, 1 for constant features.
    codebooks: jax.Array  # [C, W, L]
    counts: jax.Array  # [C, W] running mean of the batch's items per code, 1 = the mean code.
    sums: jax.Array  # [C, W, L] running mean of the sum of their residuals, in the same unit.


def init(key: jax.Array, config: RQVAEConfig, embeddings: jax.Array) -> tuple[Params, Variables]:
    """Initialises the networks, and the codebooks by residual k-means of encoded data.

    Args:
      key: PRNG key.
      config: sizes.
      embeddings: [n, E] real embeddings, `n` at least W.

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
    """The loss of a training step.

    Args:
      config: sizes and weights.
      axis_name: under `pmap`, the axis of the replicas, whose codebooks then stay equal.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`, with `batch` of
      `embedding` [B, E] float32 and optionally `where` [B] bool, the item exists. The loss is
      the squared error of the standardised embedding, summed over features (a mean would let
      the commitment term dominate and collapse the codebooks), plus the weighted commitment,
      averaged over items.
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
    """Moves each codeword to the running mean of its residuals; weak codes start again.

    A code that carries too few items takes a part of a cluster of the batch instead, the larger
    the cluster the likelier.

    Args:
      config: the decay of the running means.
      variables: codebooks and running means before the batch.
      residuals: [C, B, L] what each layer was given.
      codes: [B, C] int32 what it chose.
      where: [B] bool, the item exists.
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

    A layer's residual less its codeword is what the next layer is given.
    """
    errors = jnp.concatenate([residuals[1:], last[None]])
    return jnp.sum(errors**2, axis=(0, -1))


def _mean(x: jax.Array, where: jax.Array) -> jax.Array:
    """Mean of `x` [B] over the items that exist, 0 where there is none."""
    return jnp.sum(jnp.where(where, x, 0)) / jnp.maximum(where.sum(), 1)


def _perplexity(counts: jax.Array) -> jax.Array:
    """Perplexity of running counts [C, W], averaged over layers."""
    share = counts / counts.sum(axis=-1, keepdims=True)
    return jnp.mean(jnp.exp(jax.scipy.special.entr(share).sum(axis=-1)))


def _gather(
    seen: tuple[jax.Array, jax.Array, jax.Array], axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Joins the batches of all replicas: residuals along axis 1, codes and mask along axis 0."""
    if axis_name is None:
        return seen
    residuals, codes, where = seen
    codes, where = (lax.all_gather(x, axis_name, tiled=True) for x in (codes, where))
    return lax.all_gather(residuals, axis_name, axis=1, tiled=True), codes, where
