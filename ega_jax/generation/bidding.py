"""Token-level bids and allocation probabilities (paper sec. 4.3.1-2)."""

import chex
import jax
import jax.numpy as jnp

_IMPOSSIBLE = -1e30


def token_weights(token_bids: jax.Array, alpha: chex.Numeric, beta: chex.Numeric) -> jax.Array:
    """Weight of a token given its bid (21): `w = bid ** alpha + beta`.

    Args:
      token_bids: bids of tokens in currency per click, at least 0; any shape.
      alpha: how much bids matter, above 0.
      beta: floor of the weight, at least 0; a larger one lifts organic content.

    Returns:
      Weights, shaped as `token_bids`.
    """
    return token_bids**alpha + beta


def allocation_log_probs(
    logits: jax.Array,
    token_bids: jax.Array,
    valid: jax.Array,
    alpha: chex.Numeric,
    beta: chex.Numeric,
) -> jax.Array:
    """Log allocation probability of each token among the valid ones (22).

    `z = w * exp(logit) / sum over valid tokens`, i.e. `log_softmax(logit + log w)`.

    Args:
      logits: `[..., W]` logits of the generator.
      token_bids: `[..., W]` bids of the tokens, currency per click, at least 0.
      valid: `[..., W]` bool, the tokens that may come next.
      alpha: exponent of the bid.
      beta: floor of the weight.

    Returns:
      `[..., W]` float32 log-probabilities over the last axis; about -1e30 where a token is not
      valid, and everywhere when none is.
    """
    chex.assert_equal_shape([logits, token_bids, valid])
    weights = token_weights(token_bids, alpha, beta)
    log_weights = jnp.log(jnp.maximum(weights, jnp.finfo(jnp.float32).tiny))
    scores = jnp.where(valid, logits.astype(jnp.float32) + log_weights, _IMPOSSIBLE)
    return jnp.where(valid, jax.nn.log_softmax(scores, axis=-1), _IMPOSSIBLE)
