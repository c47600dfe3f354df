"""How the reward model learns from logged feedback (paper sec. 4.4.1, eq. 30)."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from ega_jax.generation.pretraining import weighted_mean
from ega_jax.reward.model import apply
from ega_jax.reward.network import Items, Logits, RewardConfig, RewardModel
from ega_jax.types import Feedback, Metrics, Params


def feedback_nll(logits: Logits, feedback: Feedback, where: jax.Array) -> Feedback:
    """Negative log-likelihood in nats of what users did, 0 where nothing could be seen of it.

    A conversion is seen only after a click of the POI.

    Args:
      logits: of the responses, `[..., K]` each.
      feedback: what happened, `[..., K]` bool each.
      where: `[..., K]` bool, the filled slots.

    Returns:
      `[..., K]` float32 for each response.
    """
    entropy = lambda logit, happened: optax.sigmoid_binary_cross_entropy(
        logit, happened.astype(jnp.float32)
    )
    return Feedback(
        click_poi=jnp.where(where, entropy(logits.click_poi, feedback.click_poi), 0.0),
        click_image=jnp.where(where, entropy(logits.click_image, feedback.click_image), 0.0),
        convert=jnp.where(
            where & feedback.click_poi, entropy(logits.convert, feedback.convert), 0.0
        ),
    )


def feedback_loss(
    logits: Logits, feedback: Feedback, where: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Masked binary cross-entropy of the three responses (30).

    Choice: all three are divided by the number of filled slots, so that the sum is the likelihood
    of the whole log and a conversion weighs as much as a click.

    Args:
      logits: as in `feedback_nll`.
      feedback: as in `feedback_nll`.
      where: as in `feedback_nll`.

    Returns:
      The loss `[]` in nats per filled slot, 0 where none is; and the means `nll_click_poi` and
      `nll_click_image` over filled slots, and `nll_convert` over clicked ones.
    """
    nll = feedback_nll(logits, feedback, where)
    shown = where.astype(jnp.float32)
    clicked = (where & feedback.click_poi).astype(jnp.float32)
    metrics = {
        "nll_click_poi": weighted_mean(nll.click_poi, shown),
        "nll_click_image": weighted_mean(nll.click_image, shown),
        "nll_convert": weighted_mean(nll.convert, clicked),
    }
    loss = weighted_mean(nll.click_poi + nll.click_image + nll.convert, shown)
    return loss, metrics


def reward_loss(config: RewardConfig, items: Items) -> Callable:
    """The loss of the reward phase, in the form that the training loop takes.

    Args:
      config: sizes of the reward model.
      items: what it sees of the items.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`, where `batch` holds
      the fields of ad logs; see `data.pipeline.train_batches`.
    """

    def loss(params: Params, variables, batch: dict[str, jax.Array], key: chex.PRNGKey):
        def forward(model: RewardModel):
            request = batch["history_poi"], batch["history_creative"], batch["item"]
            shown = batch["shown_poi"], batch["shown_creative"], batch["shown_is_ad"]
            memory = model.encode(items, *request)
            return model(items, memory, *shown, deterministic=False)

        logits = apply(params, config, forward, rngs={"dropout": key})
        value, metrics = feedback_loss(logits, feedback_of(batch), batch["shown_poi"] >= 0)
        return value, (metrics, variables)

    return loss


def feedback_of(batch: dict[str, jax.Array]) -> Feedback:
    """Picks the fields of `Feedback` from a batch that may hold more."""
    return Feedback(**{name: batch[name] for name in Feedback.__dataclass_fields__})
