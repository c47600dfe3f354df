"""Training models of user feedback (clicks, conversions) on an ad log."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grain
import jax
import numpy as np

from ega_jax.data import pipeline
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.reward import calibration
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import LossFn, Params

Batch = Mapping[str, Any]
VALIDATION_SESSIONS = 2048  # Sessions of the split "align" that are evaluated during training.
NAMES = {"click_poi": "poi", "click_image": "image", "convert": "conversion"}  # Used in reports.


def report(
    predict: Callable[[Params, Batch], Mapping[str, jax.Array]],
    params: Params,
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Measures ranking (AUC), log-loss and calibration on logged feedback.

    Args:
      predict: returns the probabilities `[B, K]` of responses to a batch's slates, by response.
      params: the first argument of `predict`.
      batches: batches of an ad log.

    Returns:
      `auc_NAME`, `logloss_NAME` and `ece_NAME` for each predicted response: `poi`, `image`, and
      `conversion` (among clicked slots).
    """
    rows = [(jax.device_get(predict(params, batch)), batch) for batch in batches]
    return feedback_report([prediction for prediction, _ in rows], [batch for _, batch in rows])


def feedback_report(
    predictions: list[Mapping[str, np.ndarray]], batches: list[Batch]
) -> dict[str, float]:
    """Returns the figures of `report` for given predictions or true probabilities.

    Args:
      predictions: for each batch, the probabilities `[B, K]` by response.
      batches: batches of an ad log.
    """
    join = lambda arrays: np.concatenate([np.asarray(array) for array in arrays])
    shown = join(batch["shown_poi"] for batch in batches) >= 0
    clicked = shown & join(batch["click_poi"] for batch in batches)
    figures = {}
    for response in (name for name in NAMES if name in predictions[0]):
        found = calibration.report(
            join(prediction[response] for prediction in predictions),
            join(batch[response] for batch in batches),
            clicked if response == "convert" else shown,
        )
        figures |= {f"{measure}_{NAMES[response]}": value for measure, value in found.items()}
    return figures


def logged_phase(
    name: str,
    dataset: AdLogDataset,
    settings: LoggedSettings,
    seed: int,
    *,
    history_length: int,
    init: Callable[[jax.Array], Params],
    loss: LossFn,
    evaluate: Callable[[Params, Iterable[Batch]], dict[str, float]],
    exposure_weight: float = 0.1,
    batches: grain.IterDataset | None = None,
) -> Phase:
    """Returns a phase that trains on logged feedback and evaluates on the split "align".

    Args:
      name: the phase's name.
      dataset: an ad log.
      settings: the training settings.
      seed: seeds the parameters, the order of the sessions and dropout.
      history_length: T of the batches.
      init: returns initial parameters from a random key.
      loss: the training loss, as `make_train_step` takes it.
      evaluate: measures parameters on held-out batches.
      exposure_weight: see `pipeline.train_batches`.
      batches: what to train on; default: the split "pretrain".
    """
    shapes = {"history_length": history_length, "exposure_weight": exposure_weight}
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    init_key, step_key = jax.random.split(key)
    optimizer, size = settings.optimizer(), settings.batch_size
    if batches is None:
        batches = pipeline.train_batches(
            dataset,
            "pretrain",
            batch_size=size,
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **shapes,
        )
    held_out = pipeline.eval_batches(
        dataset,
        "align",
        batch_size=size,
        max_batches=-(-VALIDATION_SESSIONS // size),
        **shapes,
    )
    return Phase(
        name=name,
        init=lambda: TrainState.create(init(init_key), optimizer),
        step=make_train_step(loss, optimizer, step_key),
        batches=batches,
        num_steps=settings.num_steps,
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
        evaluate=lambda state: evaluate(state.params, held_out),
        evaluate_every=settings.evaluate_every,
    )
