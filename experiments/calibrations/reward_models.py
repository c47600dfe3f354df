"""What reward models trained on a market's log know of the truth."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.logger import Logger
from ega_jax.evaluation.off_policy import predicted_over_true_clicks
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.reward import reward_phase, weighting_report
from ega_jax.phases.settings import RewardPhaseSettings
from ega_jax.phases.streamed import LARGE, streamed_reward
from ega_jax.reward.model import RewardConfig
from ega_jax.training.checkpoints import PhaseCheckpoints
from ega_jax.types import Params
from experiments.common.runs import measure_reward

SESSIONS = 20_000  # Test sessions, each with one uniformly drawn slate.
WEIGHTED = 1.0  # Power of the inverse propensity in the weighted model.
LARGE_FOLDER = "calibration/large"  # In the workdir.


def reward_models(run: AuctionTraining) -> dict[str, Any]:
    """Measures the default reward model, and one that weighs sessions by inverse propensity.

    Returns:
      `uniform_ratio` with its interval, and `uniform_ratio_weighted` likewise: predicted over true
      clicks on uniformly drawn slates of test sessions. `logged_ratio`: the same on the slates that
      the log shows in these sessions. `weighted_sessions`: how many sessions
      without weights tell as much as the weighted ones. `logloss_excess_poi`: the log-loss of
      logged clicks over that of the true probabilities, less 1.
    """
    weighted = dataclasses.replace(run.settings.reward, propensity_weight=WEIGHTED)
    figures = measure_reward(run, run.reward, run.reward_config)
    report = _over_truth(run, run.reward, "uniform_ratio")
    report |= _over_truth(run, run.reward, "logged_ratio", uniform=False)
    report |= _over_truth(run, _weighted(run, weighted), "uniform_ratio_weighted")
    return report | {
        "weighted_sessions": weighting_report(run.dataset, weighted)["effective_sessions"],
        "logloss_excess_poi": _excess(figures),
    }


def large_reward_model(run: AuctionTraining) -> dict[str, Any]:
    """Measures a model with more parameters, trained on many more sessions: what can be learned.

    Returns:
      `logloss_excess_large` and `large_sessions`, the number of sessions it was trained on.
    """
    settings = _large_settings(run)
    params, config = streamed_reward(run, settings, LARGE_FOLDER, run.settings.seed + 1)
    figures = measure_reward(run, params, config)
    return {
        "logloss_excess_large": _excess(figures),
        "large_sessions": settings.batch_size * settings.num_steps,
    }


def trained_large_model(run: AuctionTraining) -> tuple[Params, RewardConfig] | None:
    """Restores the model of `large_reward_model`; None if it was not trained to its end."""
    settings = _large_settings(run)
    checkpoints = run.pretraining.workdir / LARGE_FOLDER / "checkpoints" / "reward"
    if PhaseCheckpoints(checkpoints).latest_step() != settings.num_steps:
        return None
    return streamed_reward(run, settings, LARGE_FOLDER, run.settings.seed + 1)


def _large_settings(run: AuctionTraining) -> RewardPhaseSettings:
    return dataclasses.replace(run.settings.reward, **LARGE)


def _excess(figures: Mapping[str, float]) -> float:
    return figures["logloss_poi"] / figures["truth_logloss_poi"] - 1


def _weighted(run: AuctionTraining, settings: RewardPhaseSettings) -> Params:
    """A reward model that weighs sessions; trained first, unless an earlier run did."""
    phase = reward_phase(run.dataset, run.items, run.reward_config, settings, run.settings.seed)
    return run.train_shared(phase, "calibration/weighted", settings)


def _over_truth(
    run: AuctionTraining, params: Params, name: str, uniform: bool = True
) -> dict[str, float]:
    """Predicted over true clicks, with its interval, on uniform or on logged slates."""
    folder, books = run.pretraining.folder, run.dataset.books
    assert books is not None, "a market's log has books"
    found = predicted_over_true_clicks(
        params,
        run.reward_config,
        run.items,
        run.sessions("test", SESSIONS, run.settings.reward.batch_size),
        Logger.load(folder),
        books,
        Truth.load(folder),
        jax.random.key(run.settings.seed) if uniform else None,
    )
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
