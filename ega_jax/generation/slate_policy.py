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
from ega_jax.generation.candidates import Candidates
from ega_jax.generation.decoder import Decoder
from ega_jax.generation.slate_space import Options, Prefix
from ega_jax.types import IMPOSSIBLE

LogProbs = tuple[jax.Array, ...]  # One array a layer, as the options have different widths.


@struct.dataclass
class Path:
    """The decoding steps of a slate: the options at each step and the code taken."""

    codes: jax.Array  # [..., K, C] int32, 0 in empty slots.
    where: jax.Array  # [..., K] bool, whether the slot is filled.
    options: tuple[Options, ...]  # By layer, fields [..., K, F]; no valid option in empty slots.

    def is_taken(self, layer: int) -> jax.Array:
        """`[..., K, F]` bool, whether the slate took the option."""
        options = self.options[layer]
        return options.where & (options.code == self.codes[..., layer, None])

    @property
    def token_bids(self) -> jax.Array:
        """`[..., K, C]` float32 token bids of the slate's codes, 0 in empty slots."""
        bids = [
            jnp.max(options.bid, axis=-1, where=self.is_taken(layer), initial=0.0)
            for layer, options in enumerate(self.options)
        ]
        return jnp.stack(bids, axis=-1)


def slate_path(candidates: Candidates, items: jax.Array) -> Path:
    """Computes the options at each step of a slate, as the beam search would see them.

    Args:
      candidates: the candidates of one request.
      items: `[K]` int32 candidates, -1 in empty slots.

    Returns:
      The path; the options of a slot are those of a beam that holds the preceding slots.
    """
    chosen = candidates.chosen(items)
    nodes = candidates.nodes(chosen)
    item_codes = candidates.codes(chosen)
    slots = items.size
    before = jnp.tril(jnp.ones((slots, slots), bool), -1)
    ended = jnp.append(False, items[:-1] < 0)

    def options(layer: int) -> Options:
        above = nodes[:, layer - 1] if layer else jnp.broadcast_to(candidates.root, slots)
        prefix = Prefix(
            node=jnp.where(ended, -1, above),
            codes=item_codes,
            chosen=jnp.where(before, chosen[None], -1),
            nodes=jnp.where(before[..., None], nodes[None], -1),
            live=~ended,
        )
        return candidates.options(layer, prefix, candidates.widths[layer])

    layers = tuple(options(layer) for layer in range(item_codes.shape[-1]))
    return Path(codes=item_codes, where=items >= 0, options=layers)


def path_log_probs(
    decoder: Decoder,
    memory: Any,
    path: Path,
    alpha: chex.Numeric,
    beta: chex.Numeric,
) -> LogProbs:
    """Log allocation probability (22) of every option along paths.

    Args:
      decoder: the generator.
      memory: the encoded histories.
      path: the slates' paths, with the leading axes of `memory`.
      alpha: exponent of token bids (21).
      beta: floor of token weights (21).

    Returns:
      By layer `[..., K, F]` float32, -1e30 for invalid options.
    """
    logits = decoder.slate_logits(memory, path.codes)
    found = []
    for layer, options in enumerate(path.options):
        of_codes = jnp.take_along_axis(logits[..., layer, :], options.code, axis=-1)
        found.append(allocation_log_probs(of_codes, options.bid, options.where, alpha, beta))
    return tuple(found)


def taken(log_probs: LogProbs, path: Path) -> jax.Array:
    """Selects the taken codes from `path_log_probs`: `[..., K, C]`, 0 in empty slots."""
    by_layer = [
        jnp.max(jnp.where(path.is_taken(layer), log_prob, IMPOSSIBLE), axis=-1)
        for layer, log_prob in enumerate(log_probs)
    ]
    return jnp.where(path.where[..., None], jnp.stack(by_layer, axis=-1), 0.0)


def slate_log_probs(
    decoder: Decoder,
    memory: Any,
    candidates: Candidates,
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


def kl_to(reference: LogProbs, log_probs: LogProbs, path: Path) -> jax.Array:
    """KL divergence of the policy from a reference along slates, summed over their steps.

    Args:
      reference: log-probabilities under the reference; no gradient flows to them.
      log_probs: log-probabilities under the policy; both from `path_log_probs`.
      path: the slates' paths.

    Returns:
      `[...]` in nats: the sum over steps of `sum p * (log p - log q)`, p the policy.
    """
    total = jnp.zeros(path.where.shape[:-1])
    for options, log_p, log_q in zip(path.options, log_probs, reference, strict=True):
        difference = jnp.where(options.where, log_p - lax.stop_gradient(log_q), 0.0)
        total += jnp.sum(jnp.exp(log_p) * difference, axis=(-2, -1))
    return total
