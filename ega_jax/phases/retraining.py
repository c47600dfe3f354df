"""Retraining the reward model on slates that the system serves and a market's users answer.

A log's slates and those that a system serves have next to nothing in common, so a reward model of
the log errs most on the slates that the search prefers. Each system may serve some sessions of the
split "align" itself, and train its reward model further on what users do there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np

from ega_jax.data import pipeline
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.data.market.audience import Audience
from ega_jax.mechanism import Mechanism
from ega_jax.phases.requests import request_of, without_blanks
from ega_jax.phases.reward import reward_phase
from ega_jax.phases.settings import PhaseSettings
from ega_jax.reward.model import RewardConfig
from ega_jax.reward.network import Items
from ega_jax.setting import part_of
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.training.state import TrainState
from ega_jax.types import Params

SERVED_AT_ONCE = 64  # Sessions.
REQUEST = ("history_poi", "history_creative", "context", "organic", "book", "item", "is_ad", "bid")
SHOWN = ("shown_poi", "shown_creative", "shown_is_ad")


def answered(
    mechanism: Mechanism, batch: Mapping[str, Any], users: Audience, key: jax.Array
) -> dict[str, np.ndarray]:
    """Serves the sessions of a batch, and asks the users what they do.

    Args:
      mechanism: serves the sessions, at any prices.
      batch: of a market's log, with `B` rows.
      users: of that log's sessions.
      key: random key.

    Returns:
      The fields of the requests and of the slates shown, as in the log's batches, of the sessions
      that are not blank.
    """
    filled, real = without_blanks(batch)
    slate = mechanism.allocate(request_of(filled), "first_price")
    shown = slate.items, slate.creatives, slate.is_ad
    feedback = users.answer(key, filled["session"], *shown)
    rows = {name: filled[name] for name in REQUEST if name in filled}
    rows |= dict(zip(SHOWN, shown, strict=True)) | vars(feedback)
    return {name: np.asarray(x)[real] for name, x in rows.items()}


def retraining_phase(
    dataset: AdLogDataset,
    items: Items,
    config: RewardConfig,
    settings: PhaseSettings,
    rows: dict[str, np.ndarray],
    params: Params,
) -> Phase:
    """Returns the phase "retraining": batches of own traffic and of the log by turns.

    Args:
      dataset: an ad log.
      items: the item features that the model reads.
      config: the model's config.
      settings: of all phases.
      rows: the system's traffic, from `answered`.
      params: the parameters to start from.
    """
    own, history = settings.retraining, {"history_length": config.history_length}
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    how: dict[str, Any] = {"batch_size": own.batch_size, "seed": settings.seed} | share
    log = pipeline.train_batches(dataset, "pretrain", **how, **history)
    log = log.map(lambda batch: {name: batch[name] for name in rows})
    batches = grain.IterDataset.mix([pipeline.array_batches(rows, **how), log])
    as_reward = dataclasses.replace(settings.reward, **part_of(own, LoggedSettings))
    phase = reward_phase(dataset, items, config, as_reward, settings.seed, batches)
    start = lambda: TrainState.create(params, own.optimizer())
    return dataclasses.replace(phase, name="retraining", init=start)
