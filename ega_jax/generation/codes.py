"""Codes of items, and what a model says of them."""

import jax
import jax.numpy as jnp


def codes_of(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Codes `[..., C]` of `ids [...]` from a table `[P, C]`; those of id 0 where ids are -1."""
    return table[jnp.maximum(ids, 0)]


def log_probs(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Log-probability `[...]` of each code `[...]` under `logits [..., W]`."""
    picked = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def sum_of_codes(table: jax.Array, codes: jax.Array) -> jax.Array:
    """Embeds items by the sum over layers: `[..., D]` of codes `[..., C]`, from `[C * W, D]`."""
    num_layers = codes.shape[-1]
    first = jnp.arange(num_layers) * (table.shape[0] // num_layers)  # Row of each layer's code 0.
    return table[codes + first].sum(-2)
