"""Token-level bids and allocation probabilities (paper sec. 4.3.1-2).

A token's bid is the highest bid among the items that carry the token, or their mean bid (the
ablation "EGA-bid"). The scope selects these items: with "prefix", the available items under the
prefix decoded so far; with "layer", all items of the request with that code at that layer, the
literal reading of the paper. With the token value "ecpm", which the paper does not have, an item
counts with `(bid + kappa) * rate`, an organic one with bid 0: the rate is its click rate alone in a
slate, over the mean of the request's ads. `candidates.Candidates` computes both.
"""

import chex
import jax
import jax.numpy as jnp

from ega_jax.types import IMPOSSIBLE

TOKEN_BIDS = ("max", "mean")
TOKEN_VALUES = ("bid", "ecpm")
SCOPES = ("prefix", "layer")


def log_weights(token_bids: jax.Array, alpha: chex.Numeric, beta: chex.Numeric) -> jax.Array:
    """Log weight of a token given its bid (21): `log(bid ** alpha + beta)`.

    It is computed in logs, because `bid ** alpha` overflows float32 at valid bids and alphas.

    Args:
      token_bids: bids of tokens in currency per click, at least 0; any shape.
      alpha: exponent of the bid, above 0.
      beta: floor of the weight, at least 0; a larger floor favours organic content.

    Returns:
      Float32, shaped as `token_bids`; finite, even if bid and beta are both 0.
    """
    log_powers = alpha * jnp.log(jnp.maximum(token_bids, jnp.finfo(jnp.float32).tiny))
    log_beta = jnp.log(jnp.float32(beta))
    # A bid of 0 weighs beta; if beta is 0 too, the weight is that of the smallest positive bid.
    of_none = jnp.where(jnp.isfinite(log_beta), log_beta, log_powers)
    return jnp.where(token_bids > 0, jnp.logaddexp(log_powers, log_beta), of_none)


def allocation_log_probs(
    logits: jax.Array,
    token_bids: jax.Array,
    valid: jax.Array,
    alpha: chex.Numeric,
    beta: chex.Numeric,
) -> jax.Array:
    """Log allocation probability of each token among the valid ones (22).

    `z = w * exp(logit) / sum over valid tokens`, with `w = b ** alpha + beta` (21); computed as
    `log_softmax(logit + log w)`.

    Args:
      logits: `[..., W]` logits of the generator.
      token_bids: `[..., W]` bids of the tokens, currency per click, at least 0.
      valid: `[..., W]` bool, the tokens that may come next.
      alpha: exponent of the bid.
      beta: floor of the weight.

    Returns:
      `[..., W]` float32 log-probabilities over the last axis; -1e30 for invalid tokens.

    Examples:
      With equal logits, alpha 1 and beta 2, the weights are 4, 2 and, as it is not valid, 0:

      >>> log_z = allocation_log_probs(
      ...     logits=jnp.zeros(3),
      ...     token_bids=jnp.array([2.0, 0.0, 9.0]),
      ...     valid=jnp.array([True, True, False]),
      ...     alpha=1.0,
      ...     beta=2.0,
      ... )
      >>> [round(p, 4) for p in jnp.exp(log_z).tolist()]
      [0.6667, 0.3333, 0.0]
    """
    logits, token_bids, valid = map(jnp.asarray, (logits, token_bids, valid))
    chex.assert_equal_shape([logits, token_bids, valid])
    scores = token_scores(logits, token_bids, valid, alpha, beta)
    return jnp.where(valid, jax.nn.log_softmax(scores, axis=-1), IMPOSSIBLE)


def token_scores(
    logits: jax.Array,
    token_bids: jax.Array,
    valid: jax.Array,
    alpha: chex.Numeric,
    beta: chex.Numeric,
) -> jax.Array:
    """`logit + log w` of each token, whose softmax is (22); -1e30 for invalid tokens.

    Arguments as in `allocation_log_probs`.
    """
    scores = logits.astype(jnp.float32) + log_weights(token_bids, alpha, beta)
    return jnp.where(valid, scores, IMPOSSIBLE)
