"""The loss of the reward model on logged feedback (paper sec. 4.4.1, eq. 30)."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from ega_jax.generation.pretraining import weighted_mean
from ega_jax.reward.model import apply
from ega_jax.reward.network import Items, RewardConfig, RewardModel
from ega_jax.reward.weighting import SessionWeights, effective_size
from ega_jax.types import LossFn, Metrics, Params, organic_pois

RESPONSES = ("click_poi", "click_image", "convert")


def feedback_loss(
    logits: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    session_weight: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Masked binary cross-entropy of the logged responses to shown items (30).

    Conversions are observed only after a click on the POI. Choice: the losses of all responses are
    divided by the number of filled slots. Their sum is then proportional to the log-likelihood of
    the whole log, and a conversion weighs as much as a click.

    Args:
      logits: response -> `[..., K]` log-odds, for some of `RESPONSES`.
      batch: a batch of an ad log, with the outcomes under the same names.
      session_weight: `[...]` weights of sessions, 1 on average over the log; default: all 1.

    Returns:
      The loss `[]` in nats per filled slot, 0 if there is none. And the mean `nll_RESPONSE` of each
      response, over filled slots or, for conversions, over slots with a click, without weights.
    """
    shown = batch["shown_poi"] >= 0
    total, metrics = jnp.zeros(shown.shape), {}
    for name, logit in logits.items():
        where = shown & batch["click_poi"] if name == "convert" else shown
        happened = batch[name].astype(logit.dtype)
        nll = jnp.where(where, optax.sigmoid_binary_cross_entropy(logit, happened), 0.0)
        metrics[f"nll_{name}"] = weighted_mean(nll, where.astype(nll.dtype))
        total += nll
    if session_weight is not None:
        total *= session_weight[..., None]
    return weighted_mean(total, shown.astype(total.dtype)), metrics


def reward_loss(
    config: RewardConfig, items: Items, weights: SessionWeights | None = None
) -> LossFn:
    """Makes the loss of the reward phase.

    Args:
      config: sizes of the reward model.
      items: codes and embeddings of the items.
      weights: of sessions, from their propensities; default: all sessions weigh the same.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`; `batch` holds the
      fields of ad logs; see `data.pipeline.train_batches`.
    """

    def loss(params: Params, variables, batch: Mapping[str, jax.Array], key: chex.PRNGKey):
        def forward(model: RewardModel):
            history = batch["history_poi"], batch["history_creative"]
            request = *history, organic_pois(batch), batch.get("context")
            shown = batch["shown_poi"], batch["shown_creative"], batch["shown_is_ad"]
            memory = model.encode(items, *request)
            return model(items, memory, *shown, deterministic=False)

        logits = apply(params, config, forward, rngs={"dropout": key})
        logits = {name: vars(logits)[name] for name in RESPONSES}
        if weights is None:
            value, metrics = feedback_loss(logits, batch)
            return value, (metrics, variables)
        weight = weights(batch["propensity"])
        value, metrics = feedback_loss(logits, batch, weight)
        metrics["effective_share"] = effective_size(weight) / weight.size
        return value, (metrics, variables)

    return loss
