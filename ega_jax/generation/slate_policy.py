"""The allocation policy along given slates: what the beam search would say of them.

A slate is a path of `K * C` decoding steps. One teacher-forced pass of the POI decoder gives the
log allocation probability (22) of all that was on offer at each step, differentiable.
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
    """The decoding steps of a slate: what was on offer at each, and what was taken."""

    codes: jax.Array  # [K, C] int32, 0 where a slot is empty.
    where: jax.Array  # [K] bool, the slot is filled.
    options: Options  # Fields [K, C, N]; nothing on offer where a slot is empty.

    @property
    def is_taken(self) -> jax.Array:
        """`[K, C, N]` bool, which of the options the slate took."""
        return self.options.where & (self.options.code == self.codes[..., None])


def slate_path(candidates: RequestCandidates, items: jax.Array) -> Path:
    """Lays out the steps that lead to a slate, as the beam search would take them.

    Args:
      candidates: of one request.
      items: `[K]` int32 candidates, -1 where a slot is empty.

    Returns:
      The path: every slot is treated as a beam that holds the slots before it.
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
    """Log allocation probability (22) of all that was on offer along paths.

    Args:
      decoder: the generator.
      memory: the encoded histories.
      path: of slates, with the same leading axes.
      alpha: exponent of token bids (21).
      beta: floor of token weights (21).

    Returns:
      `[..., K, C, N]` float32, about -1e30 for what was not on offer.
    """
    options = path.options
    logits = decoder.slate_logits(memory, path.codes)
    logits = jnp.take_along_axis(logits, options.code, axis=-1)
    return allocation_log_probs(logits, options.bid, options.where, alpha, beta)


def taken(log_probs: jax.Array, path: Path) -> jax.Array:
    """Picks the taken codes from `log_probs [..., K, C, N]`: `[..., K, C]`, 0 in empty slots."""
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
      candidates: of that request.
      items: `[K]` int32 candidates, -1 where a slot is empty.
      alpha: exponent of token bids (21).
      beta: floor of token weights (21).

    Returns:
      `[K, C]` float32, 0 where a slot is empty, about -1e30 for a code that was not on offer. Of
      items that share all codes any may stand in the slate: the probability is that of the codes.
    """
    path = slate_path(candidates, items)
    return taken(path_log_probs(decoder, memory, path, alpha, beta), path)


def kl_to(reference: jax.Array, log_probs: jax.Array, where: jax.Array) -> jax.Array:
    """KL divergence of the policy from a reference along a slate, summed over its steps.

    Args:
      reference: `[..., K, C, N]` log-probabilities under the reference, a constant.
      log_probs: likewise under the policy.
      where: likewise bool, what was on offer.

    Returns:
      `[...]` in nats: `sum over steps of sum p * (log p - log q)`.
    """
    difference = jnp.where(where, log_probs - lax.stop_gradient(reference), 0.0)
    return jnp.sum(jnp.exp(log_probs) * difference, axis=(-3, -2, -1))
