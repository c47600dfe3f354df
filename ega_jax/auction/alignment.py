"""Policy-gradient alignment of the generator to auction values (paper sec. 4.4.2, eqs. 31-32).

The gradient of an item's log allocation probability is weighted by the item's credit, computed with
a fixed reward model: in the paper its marginal contribution to the winning slate, see
`ega_jax.auction.credit`. The pre-trained backbone is frozen: the loss is differentiated only with
respect to the trained parameters, so other gradients are never computed. The KL divergence from the
pre-trained policy is logged and may be penalised.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ega_jax.auction.credit import ESTIMATORS, Credits
from ega_jax.auction.settings import TokenWeights
from ega_jax.generation.decoder import PARTS, Decoder
from ega_jax.generation.slate_policy import LogProbs, Path, kl_to, path_log_probs, taken
from ega_jax.setting import setting
from ega_jax.types import Catalogue, LossFn, Metrics, Params

__all__ = ["PARTS", "AlignmentConfig", "alignment_loss", "policy_loss", "scaled"]

Choose = Callable[[Decoder, dict[str, jax.Array], chex.PRNGKey], Credits]


@dataclasses.dataclass(frozen=True)
class AlignmentSettings:
    """The settings of the group `alignment` that define the loss."""

    estimator: str = setting("contribution", choices=tuple(ESTIMATORS))  # Of the policy gradient.
    num_samples: int = setting(16, at_least=2)  # Slates drawn per request, if any are drawn.
    kl_weight: float = setting(0.0, at_least=0)  # Weight of the KL from the pre-trained policy.
    part: str = setting("head_and_last_block", choices=PARTS)  # The parameters to train.


@dataclasses.dataclass(frozen=True)
class AlignmentConfig(AlignmentSettings, TokenWeights):
    """Settings of the alignment and of its policy's token weights (21)."""


def scaled(credit: jax.Array, where: jax.Array) -> jax.Array:
    """Scales the entries of `where` to a mean square of 1, without centring them.

    Args:
      credit: credits of any shape.
      where: bool, shaped as `credit`.

    Returns:
      Float32, 0 outside `where`; all 0 if all credits are.
    """
    kept = jnp.where(where, credit, 0.0)
    unit = kept / jnp.maximum(jnp.abs(kept).max(), jnp.finfo(jnp.float32).tiny)
    mean_square = jnp.sum(unit**2) / jnp.maximum(where.sum(), 1)
    return jnp.where(mean_square > 0, unit / jnp.sqrt(mean_square), 0.0)


def policy_loss(log_z: jax.Array, credit: jax.Array, where: jax.Array) -> jax.Array:
    """The policy-gradient loss of a slate (32): `-sum_i r_i * log z_i`.

    Args:
      log_z: `[..., K, C]` log allocation probabilities of codes; summed over an item's codes.
      credit: `[..., K]` credits `r_i`; no gradient flows to them.
      where: `[..., K]` bool, whether the slot is filled.

    Returns:
      `[...]` float32.
    """
    gain = lax.stop_gradient(credit) * log_z.sum(-1)
    return -jnp.where(where, gain, 0.0).sum(-1)


def alignment_loss(
    decoder: Decoder, settings: AlignmentConfig, catalogue: Catalogue, choose: Choose
) -> LossFn:
    """Makes the loss of policy-gradient alignment.

    Args:
      decoder: the generator; only its sizes are used, its parameters are replaced in each step.
      settings: settings of the alignment.
      catalogue: the items' codes.
      choose: `(decoder, batch, key) -> Credits`: slates under the current decoder, and the credits
        of their items. It is not differentiated.

    Returns:
      `loss(trained, pretrained, batch, key) -> (loss, (metrics, pretrained))`. `trained` holds the
      parameters of `Decoder.trainable`, `pretrained` all parameters before the alignment, and
      `batch` the fields of `Request`. The loss is the mean over slates of (32), with credits
      scaled over the batch (`scaled`), plus the weighted KL.
    """

    def log_probs(policy: Decoder, batch: dict[str, jax.Array], path: Path) -> LogProbs:
        history = batch["history_poi"], batch["history_creative"]
        memory = policy.encode(*history, catalogue, batch.get("context"))
        own = lambda path: path_log_probs(policy, memory, path, settings.alpha, settings.beta)
        return jax.vmap(own, in_axes=1, out_axes=1)(path)

    def loss(trained: Params, pretrained: Params, batch: dict[str, jax.Array], key: jax.Array):
        reference = decoder.with_parameters(pretrained)
        policy = reference.with_parameters(trained)
        credits = choose(lax.stop_gradient(policy), batch, key)
        of_policy, of_reference = (log_probs(d, batch, credits.path) for d in (policy, reference))
        metrics = _metrics(of_policy, of_reference, credits)
        total = metrics["policy_loss"] + settings.kl_weight * metrics["kl"]
        return total, (metrics, pretrained)

    return loss


def _metrics(policy, reference, credits: Credits) -> Metrics:
    """Means over slates: the loss's two terms, log-probability, value in currency."""
    path = credits.path
    log_z = taken(policy, path)
    return {
        "policy_loss": policy_loss(log_z, scaled(credits.credit, path.where), path.where).mean(),
        "kl": kl_to(reference, policy, path).mean(),
        "slate_log_prob": log_z.sum((-2, -1)).mean(),
        "value": credits.value.mean(),
    }
