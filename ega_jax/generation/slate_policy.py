"""The allocation policy's log-probabilities along given slates, equal to the beam search's.

A slate is a path of `K * C` decoding steps. One teacher-forced pass of the POI decoder gives the
log allocation probability (22) of every option at each step; it is differentiable.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.generation.bidding import allocation_log_probs
from ega_jax.generation.candidates import Options, RequestCandidates
from ega_jax.generation.decoder import Decoder
from ega_jax.types import IMPOSSIBLE


@struct.dataclass
class Path:
    """The decoding steps of a slate: the options at each step and the code taken."""

    codes: jax.Array  # [K, C] int32, 0 in empty slots.
    where: jax.Array  # [K] bool, whether the slot is filled.
    options: Options  # Fields [K, C, N]; no valid option in empty slots.

    @property
    def is_taken(self) -> jax.Array:
        """`[K, C, N]` bool, whether the slate took the option."""
        return self.options.where & (self.options.code == self.codes[..., None])


def slate_path(candidates: RequestCandidates, items: jax.Array) -> Path:
    """Computes the options at each step of a slate, as the beam search would see them.

    Args:
      candidates: the candidates of one request.
      items: `[K]` int32 candidates, -1 in empty slots.

    Returns:
      The path; the options of a slot are those of a beam that holds the preceding slots.
    """
    codes = candidates.codes(items)
    before = jnp.tril(jnp.ones((items.size, items.size), bool), -1)
    chosen = jnp.where(before, items, -1)
    layers = [
        candidates.options(layer, candidates.node(layer, items), chosen)
        for layer in range(codes.shape[-1])
    ]
    options = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *layers)
    return Path(codes=codes, where=items >= 0, options=options)


def path_log_probs(
    decoder: Decoder,
    memory: Any,
    path: Path,
    alpha: chex.Numeric,
    beta: chex.Numeric,
) -> jax.Array:
    """Log allocation probability (22) of every option along paths.

    Args:
      decoder: the generator.
      memory: the encoded histories.
      path: the slates' paths, with the leading axes of `memory`.
      alpha: exponent of token bids (21).
      beta: floor of token weights (21).

    Returns:
      `[..., K, C, N]` float32, -1e30 for invalid options.
    """
    options = path.options
    logits = decoder.slate_logits(memory, path.codes)
    logits = jnp.take_along_axis(logits, options.code, axis=-1)
    return allocation_log_probs(logits, options.bid, options.where, alpha, beta)


def taken(log_probs: jax.Array, path: Path) -> jax.Array:
    """Selects from `log_probs [..., K, C, N]` the taken codes: `[..., K, C]`, 0 in empty slots."""
    log_z = jnp.max(jnp.where(path.is_taken, log_probs, IMPOSSIBLE), axis=-1)
    return jnp.where(path.where[..., None], log_z, 0.0)


def slate_log_probs(
    decoder: Decoder,
    memory: Any,
    candidates: RequestCandidates,
    items: jax.Array,
    alpha: chex.Numeric,
    beta: chex.Numeric,
) -> jax.Array:
    """Log allocation probability of each code of a slate: `Beams.log_z`, differentiable.

    Args:
      decoder: the generator.
      memory: the encoded history of one request.
      candidates: the candidates of that request.
      items: `[K]` int32 candidates, -1 in empty slots.
      alpha: exponent of token bids (21).
      beta: floor of token weights (21).

    Returns:
      `[K, C]` float32, 0 in empty slots, -1e30 for a code that was not a valid option. It is the
      probability of the codes: items that share all codes have the same one.
    """
    path = slate_path(candidates, items)
    return taken(path_log_probs(decoder, memory, path, alpha, beta), path)


def kl_to(reference: jax.Array, log_probs: jax.Array, where: jax.Array) -> jax.Array:
    """KL divergence of the policy from a reference along a slate, summed over its steps.

    Args:
      reference: `[..., K, C, N]` log-probabilities under the reference; no gradient flows to it.
      log_probs: `[..., K, C, N]` log-probabilities under the policy.
      where: `[..., K, C, N]` bool, the valid options.

    Returns:
      `[...]` in nats: the sum over steps of `sum p * (log p - log q)`, p the policy.
    """
    difference = jnp.where(where, log_probs - lax.stop_gradient(reference), 0.0)
    return jnp.sum(jnp.exp(log_probs) * difference, axis=(-3, -2, -1))
