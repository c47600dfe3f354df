"""Codes of items: lookup, log-probabilities and embeddings."""

import jax
import jax.numpy as jnp


def codes_of(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Codes `[..., C]` of `ids [...]` from a table `[P, C]`; id -1 gives the codes of id 0."""
    return table[jnp.maximum(ids, 0)]


def log_probs(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Log-probability `[...]` of each code `[...]` under `logits [..., W]`."""
    picked = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def sum_of_codes(table: jax.Array, codes: jax.Array) -> jax.Array:
    """Sums of code embeddings `[..., D]` for codes `[..., C]`, from a table `[C * W, D]`."""
    num_layers = codes.shape[-1]
    first = jnp.arange(num_layers) * (table.shape[0] // num_layers)  # Row of each layer's code 0.
    return table[codes + first].sum(-2)
