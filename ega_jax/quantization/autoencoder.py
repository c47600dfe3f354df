"""Encoder and decoder of the RQ-VAE, and standardisation of their inputs (sec. 4.1.2)."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from ega_jax.quantization.kmeans import KMeansConfig
from ega_jax.setting import same_as, setting
from ega_jax.types import Params


@dataclasses.dataclass(frozen=True)
class RQVAEConfig:
    """Sizes and loss weights of the residual-quantised autoencoder."""

    num_layers: int = same_as(KMeansConfig, "num_layers")  # C
    num_codes: int = same_as(KMeansConfig, "num_codes")  # W
    # Widths of the encoder's hidden layers; the decoder has them in reverse order.
    hidden: tuple[int, ...] = setting((512, 256), at_least=1)
    latent: int = setting(64, at_least=1)  # L, width of the quantised latent.
    commitment: float = 0.25  # Weight of the commitment loss.
    decay: float = 0.99  # Decay per step of the codebooks' exponential moving averages.


class MLP(nn.Module):
    """Dense layers with SiLU between them."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., widths[-1]]."""
        for width in self.widths[:-1]:
            x = nn.silu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


def init_params(key: jax.Array, config: RQVAEConfig, width: int) -> Params:
    """Initialises encoder and decoder for embeddings with `width` features."""
    key_encoder, key_decoder = jax.random.split(key)
    return {
        "encoder": _encoder(config).init(key_encoder, jnp.zeros((1, width)))["params"],
        "decoder": _decoder(config, width).init(key_decoder, jnp.zeros((1, config.latent)))[
            "params"
        ],
    }


def encode(config: RQVAEConfig, params: Params, x: jax.Array) -> jax.Array:
    """Maps standardised embeddings [n, E] to latents [n, L]."""
    return cast(jax.Array, _encoder(config).apply({"params": params["encoder"]}, x))


def decode(config: RQVAEConfig, params: Params, latent: jax.Array, width: int) -> jax.Array:
    """Maps latents [n, L] to standardised embeddings [n, E] with `E` = `width`."""
    network = _decoder(config, width)
    return cast(jax.Array, network.apply({"params": params["decoder"]}, latent))


def moments(embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation [E] of embeddings [n, E]; a deviation of 0 is replaced by 1."""
    deviation = embeddings.std(axis=0)
    return embeddings.mean(axis=0), jnp.where(deviation > 0, deviation, 1.0)


def standardise(embeddings: jax.Array, mean: jax.Array, scale: jax.Array) -> jax.Array:
    """Subtracts `mean` [E] from embeddings [n, E] and divides by `scale` [E]."""
    return (embeddings - mean[None]) / scale[None]


def unstandardise(x: jax.Array, mean: jax.Array, scale: jax.Array) -> jax.Array:
    """The inverse of `standardise`."""
    return x * scale[None] + mean[None]


def _encoder(config: RQVAEConfig) -> MLP:
    return MLP((*config.hidden, config.latent))


def _decoder(config: RQVAEConfig, width: int) -> MLP:
    return MLP((*reversed(config.hidden), width))
