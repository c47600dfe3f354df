"""A common interface of residual k-means and the RQ-VAE: from embeddings to semantic tokens.

A tokenizer is a pytree: it is saved like any other state and restored into `abstract(...)`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.errors import UserError
from ega_jax.quantization import autoencoder, collisions, kmeans, residual, rqvae
from ega_jax.types import Params

TokenizerConfig = kmeans.KMeansConfig | autoencoder.RQVAEConfig


@struct.dataclass
class Tokenizer:
    """A fitted tokenizer, which maps embeddings to codes and back.

    `L` is the width of the quantised vectors: the latent width for an RQ-VAE, `E` for k-means.
    """

    mean: jax.Array  # [E] mean of the embeddings.
    scale: jax.Array  # [E] their standard deviation; k-means uses one value for all features.
    codebooks: jax.Array  # [C, W, L]
    params: Params | None  # Parameters of encoder and decoder; None for k-means.
    config: TokenizerConfig = struct.field(pytree_node=False)


def check_embeddings(embeddings: np.ndarray, num_codes: int) -> None:
    """Checks that a tokenizer can be fitted.

    Args:
      embeddings: must be [n, E] float, finite, with `n` at least W.
      num_codes: W.

    Raises:
      UserError: the embeddings are not [n, E] or empty, not finite (names the first such item), or
        fewer than W.
    """
    if embeddings.ndim != 2 or not embeddings.size:
        raise UserError(f"embeddings must be a non-empty [items, width], found {embeddings.shape}")
    bad = ~np.isfinite(embeddings).all(axis=1)
    if bad.any():
        raise UserError(f"embedding of item {bad.argmax()} is not finite ({bad.sum()} such items)")
    if len(embeddings) < num_codes:
        raise UserError(
            f"{len(embeddings)} items cannot fill {num_codes} codes: lower tokenizer.num_codes"
        )


def fit_kmeans(config: kmeans.KMeansConfig, embeddings: np.ndarray, key: jax.Array) -> Tokenizer:
    """Fits residual k-means.

    Embeddings are centred and divided by one common scale, which keeps ratios of distances.

    Args:
      config: sizes and steps.
      embeddings: [n, E] float.
      key: PRNG key.

    Returns:
      The tokenizer.

    Raises:
      UserError: see `check_embeddings`.
    """
    check_embeddings(np.asarray(embeddings), config.num_codes)
    return _fit_kmeans(config, jnp.asarray(embeddings, jnp.float32), key)


def _fit_kmeans(config: kmeans.KMeansConfig, embeddings: jax.Array, key: jax.Array) -> Tokenizer:
    mean, deviation = autoencoder.moments(embeddings)
    spread = jnp.sqrt(jnp.mean(deviation**2))
    scale = jnp.full_like(deviation, spread)
    x = autoencoder.standardise(embeddings, mean, scale)
    codebooks = kmeans.residual_kmeans(key, x, config)
    return Tokenizer(mean=mean, scale=scale, codebooks=codebooks, params=None, config=config)


def from_rqvae(
    config: autoencoder.RQVAEConfig, params: Params, variables: rqvae.Variables
) -> Tokenizer:
    """Makes the tokenizer of a trained RQ-VAE."""
    return Tokenizer(
        mean=variables.mean,
        scale=variables.scale,
        codebooks=variables.codebooks,
        params=params,
        config=config,
    )


def abstract(config: TokenizerConfig, width: int) -> Tokenizer:
    """Shapes and dtypes of a tokenizer for embeddings of width E = `width`, to restore into."""
    embeddings = jax.ShapeDtypeStruct((config.num_codes, width), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    if isinstance(config, kmeans.KMeansConfig):
        return jax.eval_shape(functools.partial(_fit_kmeans, config), embeddings, key)
    params, variables = jax.eval_shape(lambda key, x: rqvae.init(key, config, x), key, embeddings)
    return from_rqvae(config, params, variables)


@jax.jit
def encode(tokenizer: Tokenizer, embeddings: jax.Array) -> jax.Array:
    """Maps embeddings [n, E] to the vectors [n, L] that are quantised."""
    x = autoencoder.standardise(embeddings, tokenizer.mean, tokenizer.scale)
    if isinstance(tokenizer.config, autoencoder.RQVAEConfig):
        x = autoencoder.encode(tokenizer.config, tokenizer.params, x)
    return x


@jax.jit
def decode(tokenizer: Tokenizer, codes: jax.Array) -> jax.Array:
    """Reconstructs embeddings [n, E] from codes [n, C]."""
    x = residual.reconstruct(codes, tokenizer.codebooks)
    if isinstance(tokenizer.config, autoencoder.RQVAEConfig):
        width = len(tokenizer.mean)
        x = autoencoder.decode(tokenizer.config, tokenizer.params, x, width)
    return autoencoder.unstandardise(x, tokenizer.mean, tokenizer.scale)


def assign(tokenizer: Tokenizer, embeddings: np.ndarray, resolve: bool = True) -> np.ndarray:
    """Assigns codes to the items of a catalogue; returns them on the host.

    Args:
      tokenizer: a fitted tokenizer.
      embeddings: [P, E] float.
      resolve: whether colliding items get distinct last codes; see `collisions.resolve`.

    Returns:
      [P, C] int32 codes.
    """
    codes, left = _quantize(tokenizer, jnp.asarray(embeddings, jnp.float32))
    if not resolve:
        return np.array(codes)
    return collisions.resolve(*map(np.asarray, (codes, left, tokenizer.codebooks[-1])))


def assign_beside(tokenizer: Tokenizer, known: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Assigns codes to new items; the codes of known items do not change.

    Args:
      tokenizer: a fitted tokenizer.
      known: [P, C] int codes of the known items.
      embeddings: [n, E] float of the new items.

    Returns:
      [n, C] int32 codes; see `collisions.resolve_beside`.
    """
    codes, left = map(np.asarray, _quantize(tokenizer, jnp.asarray(embeddings, jnp.float32)))
    return collisions.resolve_beside(known, codes, left, np.asarray(tokenizer.codebooks[-1]))


@jax.jit
def _quantize(tokenizer: Tokenizer, embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nearest codes [n, C] and the residuals [n, L] that the last layer quantises."""
    codes, residuals = residual.quantize_layers(encode(tokenizer, embeddings), tokenizer.codebooks)
    return codes, residuals[-1]


def report(
    tokenizer: Tokenizer, embeddings: np.ndarray, codes: np.ndarray
) -> dict[str, float | int | list[float]]:
    """Quality metrics of a catalogue's codes.

    Args:
      tokenizer: the tokenizer that assigned the codes.
      embeddings: [P, E] float.
      codes: [P, C] int; or [P, C + 1] with a layer from `collisions.disambiguate`.

    Returns:
      For each of the C layers: `usage`, the share of the W codes in use; `usage_attainable`, the
      number of codes in use divided by min(W, P / 4), at most 1; `perplexity`. For the catalogue:
      `r2`, the share of the embeddings' variance explained by the codes; `collision_rate`, the
      share of items that share all codes with another item; `largest_leaf`, the largest number of
      items with the same codes.
    """
    figures = _figures(tokenizer, jnp.asarray(embeddings, jnp.float32), jnp.asarray(codes))
    found: dict[str, float | int | list[float]] = {k: v.tolist() for k, v in figures.items()}
    sizes = residual.leaf_sizes(codes)
    found["collision_rate"] = residual.collision_rate(sizes)
    found["largest_leaf"] = int(sizes.max())
    return found


@jax.jit
def _figures(tokenizer: Tokenizer, embeddings: jax.Array, codes: jax.Array) -> dict[str, jax.Array]:
    num_layers, num_codes, _ = tokenizer.codebooks.shape
    layers = codes[:, :num_layers]
    usage = residual.usage(layers, num_codes)
    attainable = min(1.0, len(codes) / 4 / num_codes)
    return {
        "usage": usage,
        "usage_attainable": jnp.minimum(usage / attainable, 1.0),
        "perplexity": residual.perplexity(layers, num_codes),
        "r2": residual.r2(embeddings, decode(tokenizer, layers)),
    }
