"""The reward model's training phase and its item features (sec. 4.2)."""

from collections.abc import Callable

import grain
import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.errors import UserError
from ega_jax.phases.logged import Batch, logged_phase, report
from ega_jax.phases.settings import RewardPhaseSettings
from ega_jax.reward import model
from ega_jax.reward.losses import reward_loss
from ega_jax.reward.model import Items, Predictions, RewardConfig
from ega_jax.reward.weighting import SessionWeights, WeightingSettings, session_weights
from ega_jax.training.loop import Phase
from ega_jax.types import Catalogue, Params, organic_pois


def items_of(
    dataset: AdLogDataset,
    catalogue: Catalogue,
    fitted: tuple[int | None, int | None] = (None, None),
) -> Items:
    """Returns the reward model's item features: codes and standardised embeddings.

    Args:
      dataset: an ad log.
      catalogue: the items' codes.
      fitted: the numbers of POIs and of creatives, from the first, that set mean and scale;
        default: all.
    """
    embeddings = dataset.item_embedding, dataset.creative_embedding
    scaled = (standardise(*x) for x in zip(embeddings, fitted, strict=True))
    return Items(catalogue, *map(jnp.asarray, scaled))


def standardise(embedding: np.ndarray, num_fitted: int | None = None) -> np.ndarray:
    """Scales each feature of `[P, E]` to mean 0 and standard deviation 1; constants become 0.

    Args:
      embedding: `[P, E]` float32.
      num_fitted: the number of rows, from the first, that set mean and deviation; default: all.
    """
    fitted = embedding[:num_fitted]
    deviation = fitted.std(axis=0)
    centred = embedding - fitted.mean(axis=0)
    return (centred / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)


def reward_phase(
    dataset: AdLogDataset,
    items: Items,
    config: RewardConfig,
    settings: RewardPhaseSettings,
    seed: int,
    batches: grain.IterDataset | None = None,
) -> Phase:
    """Returns the phase "reward", which trains the reward model on logged feedback (30).

    Args:
      dataset: an ad log.
      items: the item features that the model reads.
      config: the model's config.
      settings: the training settings; see `logged_phase`.
      seed: seeds the parameters, the order of the sessions and dropout.
      batches: what to train on; default: the split "pretrain" of the log.

    Raises:
      UserError: sessions are to be weighed by their propensities, and the log has none.
    """
    predict = batch_predictor(config, items)
    return logged_phase(
        "reward",
        dataset,
        settings,
        seed,
        history_length=config.history_length,
        init=lambda key: model.init(key, config, items),
        loss=reward_loss(config, items, weights_of(dataset, settings)),
        evaluate=lambda params, batches: report(
            lambda params, batch: vars(predict(params, batch)), params, batches
        ),
        batches=batches,
    )


def batch_predictor(config: RewardConfig, items: Items) -> Callable[[Params, Batch], Predictions]:
    """Returns a compiled `(params, batch) -> Predictions` for the slates shown in an ad log."""

    @jax.jit
    def predict(params: Params, batch: Batch) -> Predictions:
        history = batch["history_poi"], batch["history_creative"]
        request = *history, organic_pois(batch), batch.get("context")
        memory = model.encode(params, config, items, *request)
        shown = batch["shown_poi"], batch["shown_creative"], batch["shown_is_ad"]
        return model.predict(params, config, items, memory, *shown)

    return predict


def weights_of(dataset: AdLogDataset, settings: WeightingSettings) -> SessionWeights | None:
    """Returns the weights of the split "pretrain" by inverse propensity; None without weighting.

    Raises:
      UserError: sessions are to be weighed, and none has a propensity.
    """
    if not settings.propensity_weight:
        return None
    weights = None
    if "propensity" in dataset.recorded:
        read = lambda: dataset.recorded_in("pretrain", "propensity")
        weights = session_weights(read, settings)
    if weights is None:
        raise UserError(
            f"config.reward.propensity_weight is {settings.propensity_weight}, but the log has no "
            "'propensity' of its sessions in the split 'pretrain': set it to 0"
        )
    return weights


def weighting_report(dataset: AdLogDataset, settings: WeightingSettings) -> dict[str, float]:
    """Returns the weighting as in `results.json`; empty without weighting."""
    weights = weights_of(dataset, settings)
    if weights is None:
        return {}
    return {
        "propensity_weight": weights.power,
        "largest_weight": weights.largest,
        "effective_sessions": weights.effective_sessions,
    }
