"""Models of what users do, trained on the feedback of an ad log."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
VALIDATION_SESSIONS = 2048  # Of the split "align", measured during training.
NAMES = {"click_poi": "poi", "click_image": "image", "convert": "conversion"}  # In reports.


def report(
    predict: Callable[[Params, Batch], Mapping[str, jax.Array]],
    params: Params,
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Ranking, likelihood and calibration on logged feedback.

    Args:
      predict: gives the probabilities `[B, K]` of some responses to the slates of a batch.
      params: its first argument.
      batches: of an ad log.

    Returns:
      `auc_NAME`, `logloss_NAME` and `ece_NAME` for the responses `poi`, `image`, and, among
      clicked slots, `conversion`, as far as they are predicted.
    """
    rows = [(jax.device_get(predict(params, batch)), batch) for batch in batches]
    return feedback_report([prediction for prediction, _ in rows], [batch for _, batch in rows])


def feedback_report(
    predictions: list[Mapping[str, np.ndarray]], batches: list[Batch]
) -> dict[str, float]:
    """The figures of `report` for predictions, or true probabilities, made before.

    Args:
      predictions: one per batch, `[B, K]` by response.
      batches: of an ad log.
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
) -> Phase:
    """Training on the split "pretrain" of an ad log, measured on "align".

    Args:
      name: of the phase.
      dataset: an ad log.
      settings: of the training.
      seed: of parameters, order of the sessions and dropout.
      history_length: T of the batches.
      init: makes the parameters.
      loss: in the form that the training loop takes.
      evaluate: measures parameters on held-out batches.
      exposure_weight: see `pipeline.train_batches`.
    """
    shapes = {"history_length": history_length, "exposure_weight": exposure_weight}
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    init_key, step_key = jax.random.split(key)
    optimizer, size = settings.optimizer(), settings.batch_size
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
        batches=pipeline.train_batches(
            dataset,
            "pretrain",
            batch_size=size,
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **shapes,
        ),
        num_steps=settings.num_steps,
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
        evaluate=lambda state: evaluate(state.params, held_out),
        evaluate_every=settings.evaluate_every,
    )
