"""Policy-gradient alignment by marginal contributions (paper sec. 4.4.2, eqs. 31-32).

What an item adds to the slate that won, judged by a fixed reward model, weighs the gradient of
its log allocation probability. The pre-trained backbone is frozen: the parameters are split in
two, the loss is differentiated by the trained ones alone, and so the gradient of the rest is
never computed. The KL divergence from the pre-trained policy is reported and may be penalised.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ega_jax.auction.settings import TokenWeights
from ega_jax.generation.candidates import RequestCandidates, request_candidates
from ega_jax.generation.codes import codes_of
from ega_jax.generation.decoder import PARTS, Decoder
from ega_jax.generation.slate_policy import Path, kl_to, path_log_probs, slate_path, taken
from ega_jax.setting import setting
from ega_jax.types import Catalogue, LossFn, Metrics, Params

__all__ = ["PARTS", "AlignmentConfig", "alignment_loss", "policy_loss", "standardise"]

Choose = Callable[[Any, dict[str, jax.Array]], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class AlignmentSettings:
    """What the loss reads of the group `alignment`."""

    kl_weight: float = setting(0.0, at_least=0)  # Of the KL from the pre-trained policy, per nat.
    part: str = setting("head_and_last_block", choices=PARTS)  # What is trained.


@dataclasses.dataclass(frozen=True)
class AlignmentConfig(AlignmentSettings, TokenWeights):
    """Settings of the alignment, and of the token weights (21) that its policy has."""


def standardise(r: jax.Array, where: jax.Array) -> jax.Array:
    """Scales what is `where` to mean 0 and variance 1; all zeros where nothing varies.

    Args:
      r: contributions of any shape.
      where: bool, shaped as `r`.

    Returns:
      Float32, 0 outside `where`. Spread that rounding alone could cause counts as none.
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
      log_z: `[..., K, C]` log allocation probabilities; an item's is the sum over its codes.
      contribution: `[..., K]` `r_i`, a constant to the gradient.
      where: `[..., K]` bool, the slot is filled.

    Returns:
      `[...]` float32.
    """
    gain = lax.stop_gradient(contribution) * log_z.sum(-1)
    return -jnp.where(where, gain, 0.0).sum(-1)


def alignment_loss(
    decoder: Decoder,
    settings: AlignmentConfig,
    catalogue: Catalogue,
    choose: Choose,
    index: Callable[..., RequestCandidates] = request_candidates,
) -> LossFn:
    """The loss of policy-gradient alignment, in the form that the training loop takes.

    Args:
      decoder: the generator; only its sizes are read, its parameters are those of each step.
      settings: of the alignment.
      catalogue: the items' codes.
      choose: `(decoder, batch) -> (items [B, K], contribution [B, K])`, the slates that win under
        the current decoder, as candidates, -1 where a slot is empty, and what each item adds to
        its slate (31), in currency. Not differentiated.
      index: `request_candidates` with the settings that `choose` uses.

    Returns:
      `loss(trained, pretrained, batch, key) -> (loss, (metrics, pretrained))`, where `trained` is
      `Decoder.trainable` and `pretrained` holds all parameters before the alignment. `batch`
      holds the fields of `Request`. The loss is the mean over requests of (32), with
      contributions standardised over the batch, plus the weighted KL.
    """

    def path_of(item, is_ad, bid, items) -> Path:
        codes = codes_of(catalogue.poi_codes, item)
        return slate_path(index(codes, is_ad, bid, item >= 0), items)

    def log_probs(policy: Decoder, batch: dict[str, jax.Array], path: Path) -> jax.Array:
        memory = policy.encode(batch["history_poi"], batch["history_creative"], catalogue)
        return path_log_probs(policy, memory, path, settings.alpha, settings.beta)

    def loss(trained: Params, pretrained: Params, batch: dict[str, jax.Array], key: jax.Array):
        del key  # Nothing is sampled.
        reference = decoder.with_parameters(pretrained)
        policy = reference.with_parameters(trained)
        items, contribution = choose(lax.stop_gradient(policy), batch)
        path = jax.vmap(path_of)(batch["item"], batch["is_ad"], batch["bid"], items)
        of_policy, of_reference = (log_probs(d, batch, path) for d in (policy, reference))
        metrics = _metrics(of_policy, of_reference, path, contribution)
        total = metrics["policy_loss"] + settings.kl_weight * metrics["kl"]
        return total, (metrics, pretrained)

    return loss


def _metrics(policy, reference, path: Path, contribution: jax.Array) -> Metrics:
    """Means over requests of the loss's two terms, and of what they are made of."""
    log_z = taken(policy, path)
    where = path.where
    weights = standardise(contribution, where)
    return {
        "policy_loss": policy_loss(log_z, weights, where).mean(),
        "kl": kl_to(reference, policy, path.options.where).mean(),
        "slate_log_prob": log_z.sum((-2, -1)).mean(),
        "contribution": jnp.where(where, contribution, 0.0).sum(-1).mean(),
    }
