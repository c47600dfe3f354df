"""The reward model's phase: what it sees of the items, its training and its report (sec. 4.2)."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.data import pipeline
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.reward import calibration, model
from ega_jax.reward.losses import reward_loss
from ega_jax.reward.model import Items, Predictions, RewardConfig
from ega_jax.training.loop import Phase
from ega_jax.training.optimizer import OptimizerConfig, make_optimizer
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import Catalogue, Params

Batch = Mapping[str, Any]

VALIDATION_SESSIONS = 2048  # Of the split "align", measured during training.
NAMES = {"click_poi": "poi", "click_image": "image", "convert": "conversion"}  # In reports.


def items_of(dataset: AdLogDataset, catalogue: Catalogue) -> Items:
    """What the reward model sees of a dataset's items."""
    embeddings = dataset.item_embedding, dataset.creative_embedding
    return Items(catalogue, *(jnp.asarray(standardise(embedding)) for embedding in embeddings))


def standardise(embedding: np.ndarray) -> np.ndarray:
    """Brings each feature of `[P, E]` to mean 0 and deviation 1; a constant one becomes 0."""
    deviation = embedding.std(axis=0)
    centred = embedding - embedding.mean(axis=0)
    return (centred / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)


def reward_config(settings: Mapping[str, Any], generator: GeneratorConfig) -> RewardConfig:
    """Sizes of the reward model: from its settings, and from the generator where they are shared.

    Args:
      settings: those named like a field of `RewardConfig` are taken.
      generator: sizes of the generator that proposes the slates.
    """
    shared = ("num_codes", "num_layers", "num_slots", "history_length")
    names = {field.name for field in dataclasses.fields(RewardConfig)} & settings.keys()
    return RewardConfig(
        **{name: getattr(generator, name) for name in shared},
        **{name: settings[name] for name in names},
    )


def reward_phase(
    name: str,
    dataset: AdLogDataset,
    items: Items,
    config: RewardConfig,
    settings: Mapping[str, Any],
    seed: int,
) -> Phase:
    """Training on the logged feedback of the split "pretrain" (30), measured on "align".

    Args:
      name: of the phase: "reward", or "reward_pointwise" for the control.
      dataset: an ad log.
      items: what the model sees of its items.
      config: sizes of the model.
      settings: of the training, and of the optimizer by the names in `OptimizerConfig`.
      seed: of parameters, order of the sessions and dropout.
    """
    key = jax.random.fold_in(jax.random.key(seed), 3)
    init_key, step_key = jax.random.split(key)
    names = {field.name for field in dataclasses.fields(OptimizerConfig)} & settings.keys()
    optimizer = make_optimizer(
        OptimizerConfig(**{name: settings[name] for name in names}), settings["num_steps"]
    )
    shapes = {"history_length": config.history_length, "num_slots": config.num_slots}
    size = settings["batch_size"]
    held_out = pipeline.eval_batches(
        dataset,
        "align",
        batch_size=size,
        max_batches=-(-VALIDATION_SESSIONS // size),
        **shapes,
    )
    predict = batch_predictor(config, items)
    return Phase(
        name=name,
        init=lambda: TrainState.create(model.init(init_key, config, items), optimizer),
        step=make_train_step(reward_loss(config, items), optimizer, step_key),
        batches=pipeline.train_batches(
            dataset,
            "pretrain",
            batch_size=size,
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **shapes,
        ),
        num_steps=settings["num_steps"],
        checkpoint_every=settings["checkpoint_every"],
        log_every=settings["log_every"],
        evaluate=lambda state: report(predict, state.params, held_out),
        evaluate_every=settings["evaluate_every"],
    )


def batch_predictor(config: RewardConfig, items: Items) -> Callable[[Params, Batch], Predictions]:
    """Compiles `(params, batch) -> Predictions` for the slates of batches of an ad log."""

    @jax.jit
    def predict(params: Params, batch: Batch) -> Predictions:
        request = batch["history_poi"], batch["history_creative"], batch["item"]
        memory = model.encode(params, config, items, *request)
        shown = batch["shown_poi"], batch["shown_creative"], batch["shown_is_ad"]
        return model.predict(params, config, items, memory, *shown)

    return predict


def report(
    predict: Callable[[Params, Batch], Predictions], params: Params, batches: Iterable[Batch]
) -> dict[str, float]:
    """Ranking, likelihood and calibration on logged feedback.

    Args:
      predict: from `batch_predictor`.
      params: of the reward model.
      batches: of an ad log.

    Returns:
      `auc_NAME`, `logloss_NAME` and `ece_NAME` for the responses `poi`, `image`, and, among
      clicked slots, `conversion`.
    """
    rows = [(jax.device_get(predict(params, batch)), batch) for batch in batches]
    return feedback_report([prediction for prediction, _ in rows], [batch for _, batch in rows])


def feedback_report(predictions: list[Any], batches: list[Batch]) -> dict[str, float]:
    """The figures of `report` for predictions, or true probabilities, made before.

    Args:
      predictions: one per batch, with a field `[B, K]` for each response.
      batches: of an ad log.
    """
    join = lambda arrays: np.concatenate([np.asarray(array) for array in arrays])
    shown = join(batch["shown_poi"] for batch in batches) >= 0
    clicked = shown & join(batch["click_poi"] for batch in batches)
    figures = {}
    for response, name in NAMES.items():
        found = calibration.report(
            join(getattr(prediction, response) for prediction in predictions),
            join(batch[response] for batch in batches),
            clicked if response == "convert" else shown,
        )
        figures |= {f"{measure}_{name}": value for measure, value in found.items()}
    return figures
