"""Policy-gradient alignment by marginal contributions (paper sec. 4.4.2, eqs. 31-32).

The gradient of an item's log allocation probability is weighted by the item's marginal contribution
to the winning slate, computed with a fixed reward model. The pre-trained backbone is frozen: the
loss is differentiated only with respect to the trained parameters, so other gradients are never
computed. The KL divergence from the pre-trained policy is logged and may be penalised.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ega_jax.auction.settings import TokenWeights
from ega_jax.generation.decoder import PARTS, Decoder
from ega_jax.generation.slate_policy import LogProbs, Path, kl_to, path_log_probs, taken
from ega_jax.setting import setting
from ega_jax.types import Catalogue, LossFn, Metrics, Params

__all__ = ["PARTS", "AlignmentConfig", "alignment_loss", "policy_loss", "standardise"]

Choose = Callable[[Any, dict[str, jax.Array]], tuple[Path, jax.Array]]


@dataclasses.dataclass(frozen=True)
class AlignmentSettings:
    """The settings of the group `alignment` that define the loss."""

    kl_weight: float = setting(0.0, at_least=0)  # Weight of the KL from the pre-trained policy.
    part: str = setting("head_and_last_block", choices=PARTS)  # The parameters to train.


@dataclasses.dataclass(frozen=True)
class AlignmentConfig(AlignmentSettings, TokenWeights):
    """Settings of the alignment and of its policy's token weights (21)."""


def standardise(r: jax.Array, where: jax.Array) -> jax.Array:
    """Scales the entries of `where` to mean 0 and variance 1; all 0 if they do not vary.

    Args:
      r: contributions of any shape.
      where: bool, shaped as `r`.

    Returns:
      Float32, 0 outside `where`. A spread within rounding error counts as no variation.
    """
    count = jnp.maximum(where.sum(), 1)
    kept = jnp.where(where, r, 0.0)
    centred = jnp.where(where, r - kept.sum() / count, 0.0)
    deviation = jnp.sqrt(jnp.sum(centred**2) / count)
    varies = deviation > 1e-6 * jnp.abs(kept).max()
    return jnp.where(varies, centred / jnp.where(varies, deviation, 1.0), 0.0)


def policy_loss(log_z: jax.Array, contribution: jax.Array, where: jax.Array) -> jax.Array:
    """The policy-gradient loss of a slate (32): `-sum_i r_i * log z_i`.

    Args:
      log_z: `[..., K, C]` log allocation probabilities of codes; summed over an item's codes.
      contribution: `[..., K]` contributions `r_i`; no gradient flows to them.
      where: `[..., K]` bool, whether the slot is filled.

    Returns:
      `[...]` float32.
    """
    gain = lax.stop_gradient(contribution) * log_z.sum(-1)
    return -jnp.where(where, gain, 0.0).sum(-1)


def alignment_loss(
    decoder: Decoder, settings: AlignmentConfig, catalogue: Catalogue, choose: Choose
) -> LossFn:
    """Makes the loss of policy-gradient alignment.

    Args:
      decoder: the generator; only its sizes are used, its parameters are replaced in each step.
      settings: settings of the alignment.
      catalogue: the items' codes.
      choose: `(decoder, batch) -> (paths [B], contribution [B, K])`: the paths of the winning
        slates under the current decoder, and the marginal contributions of their items (31), in
        currency. It is not differentiated.

    Returns:
      `loss(trained, pretrained, batch, key) -> (loss, (metrics, pretrained))`. `trained` holds the
      parameters of `Decoder.trainable`, `pretrained` all parameters before the alignment, and
      `batch` the fields of `Request`. The loss is the mean over requests of (32), with
      contributions standardised over the batch, plus the weighted KL.
    """

    def log_probs(policy: Decoder, batch: dict[str, jax.Array], path: Path) -> LogProbs:
        history = batch["history_poi"], batch["history_creative"]
        memory = policy.encode(*history, catalogue, batch.get("context"))
        return path_log_probs(policy, memory, path, settings.alpha, settings.beta)

    def loss(trained: Params, pretrained: Params, batch: dict[str, jax.Array], key: jax.Array):
        del key  # Nothing is sampled.
        reference = decoder.with_parameters(pretrained)
        policy = reference.with_parameters(trained)
        path, contribution = choose(lax.stop_gradient(policy), batch)
        of_policy, of_reference = (log_probs(d, batch, path) for d in (policy, reference))
        metrics = _metrics(of_policy, of_reference, path, contribution)
        total = metrics["policy_loss"] + settings.kl_weight * metrics["kl"]
        return total, (metrics, pretrained)

    return loss


def _metrics(policy, reference, path: Path, contribution: jax.Array) -> Metrics:
    """Means over requests: the loss's two terms, slate log-probability and contribution."""
    log_z = taken(policy, path)
    where = path.where
    weights = standardise(contribution, where)
    return {
        "policy_loss": policy_loss(log_z, weights, where).mean(),
        "kl": kl_to(reference, policy, path).mean(),
        "slate_log_prob": log_z.sum((-2, -1)).mean(),
        "contribution": jnp.where(where, contribution, 0.0).sum(-1).mean(),
    }
