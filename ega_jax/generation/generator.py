"""The generator as pure functions: init, encode a history, apply (sec. 4.1)."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from ega_jax.generation.network import Generator, GeneratorConfig, Memory
from ega_jax.types import Catalogue, Params

__all__ = [
    "Generator",
    "GeneratorConfig",
    "Memory",
    "apply",
    "codes_of",
    "encode",
    "init",
    "log_probs",
]


def init(key: chex.PRNGKey, config: GeneratorConfig, catalogue: Catalogue) -> chex.ArrayTree:
    """Fresh parameters of a generator; pure, so that `eval_shape` gives the shapes alone."""
    ids = jnp.zeros((1, config.history_length), jnp.int32)
    codes = jnp.zeros((1, config.num_slots, config.num_layers), jnp.int32)

    def whole(model: Generator):
        return model(model.encode(ids, ids, catalogue), codes, codes)

    return nn.init(whole, Generator(config))(key)["params"]


def apply(params: Params, config: GeneratorConfig, function, **kwargs: Any) -> Any:
    """Calls `function(generator)` with the parameters bound; further arguments are Flax's."""
    return Generator(config).apply({"params": params}, method=function, **kwargs)


def encode(
    params: Params,
    config: GeneratorConfig,
    history_poi: jax.Array,
    history_creative: jax.Array,
    catalogue: Catalogue,
) -> Memory:
    """Encodes histories `[..., T]` for the search; see `Generator.encode`."""
    return apply(params, config, lambda g: g.encode(history_poi, history_creative, catalogue))


def codes_of(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Codes `[..., C]` of `ids [...]` from a table `[P, C]`; those of id 0 where ids are -1."""
    return table[jnp.maximum(ids, 0)]


def log_probs(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Log-probability `[...]` of each code `[...]` under `logits [..., W]`."""
    picked = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)
