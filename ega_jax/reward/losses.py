"""The loss of the reward model on logged feedback (paper sec. 4.4.1, eq. 30)."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from ega_jax.generation.pretraining import weighted_mean
from ega_jax.reward.model import apply
from ega_jax.reward.network import Items, RewardConfig, RewardModel
from ega_jax.types import LossFn, Metrics, Params, organic_pois

RESPONSES = ("click_poi", "click_image", "convert")


def feedback_loss(
    logits: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, Metrics]:
    """Masked binary cross-entropy of the logged responses to shown items (30).

    Conversions are observed only after a click on the POI. Choice: the losses of all responses are
    divided by the number of filled slots. Their sum is then proportional to the log-likelihood of
    the whole log, and a conversion weighs as much as a click.

    Args:
      logits: response -> `[..., K]` log-odds, for some of `RESPONSES`.
      batch: a batch of an ad log, with the outcomes under the same names.

    Returns:
      The loss `[]` in nats per filled slot, 0 if there is none. And the mean `nll_RESPONSE` of each
      response, over filled slots or, for conversions, over slots with a click.
    """
    shown = batch["shown_poi"] >= 0
    total, metrics = jnp.zeros(shown.shape), {}
    for name, logit in logits.items():
        where = shown & batch["click_poi"] if name == "convert" else shown
        happened = batch[name].astype(logit.dtype)
        nll = jnp.where(where, optax.sigmoid_binary_cross_entropy(logit, happened), 0.0)
        metrics[f"nll_{name}"] = weighted_mean(nll, where.astype(nll.dtype))
        total += nll
    return weighted_mean(total, shown.astype(total.dtype)), metrics


def reward_loss(config: RewardConfig, items: Items) -> LossFn:
    """Makes the loss of the reward phase.

    Args:
      config: sizes of the reward model.
      items: codes and embeddings of the items.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`; `batch` holds the
      fields of ad logs; see `data.pipeline.train_batches`.
    """

    def loss(params: Params, variables, batch: Mapping[str, jax.Array], key: chex.PRNGKey):
        def forward(model: RewardModel):
            request = batch["history_poi"], batch["history_creative"], organic_pois(batch)
            shown = batch["shown_poi"], batch["shown_creative"], batch["shown_is_ad"]
            memory = model.encode(items, *request)
            return model(items, memory, *shown, deterministic=False)

        logits = apply(params, config, forward, rngs={"dropout": key})
        value, metrics = feedback_loss({name: vars(logits)[name] for name in RESPONSES}, batch)
        return value, (metrics, variables)

    return loss
