"""Reward models trained on fresh sessions of a simulated market instead of its log."""

import dataclasses

import jax

from ega_jax.data.market.logger import Logger
from ega_jax.data.market.stream import FreshSessions
from ega_jax.data.market.world import make_world
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.reward import reward_phase
from ega_jax.phases.settings import RewardPhaseSettings
from ega_jax.reward.model import RewardConfig
from ega_jax.types import Params

LARGE = {  # Settings of a model of a million parameters; it sees two million sessions once.
    "width": 128,
    "hidden": 512,
    "num_heads": 8,
    "blocks": 2,
    "batch_size": 512,
    "num_steps": 3907,
}


def streamed_reward(
    run: AuctionTraining,
    settings: RewardPhaseSettings,
    folder: str,
    seed: int,
    explore: float | None = None,
) -> tuple[Params, RewardConfig]:
    """Trains a reward model on as many fresh sessions as its steps take, or restores it.

    Args:
      run: the log of a market, and its tokens.
      settings: of the model and its training.
      folder: a folder in the workdir, bound to the settings, the seed and the share.
      seed: seeds parameters and sessions; other seeds give other sessions.
      explore: the share of uniformly drawn slates; default: the log's.

    Returns:
      The parameters and the config of the model.

    Raises:
      FileNotFoundError: the log is not that of a market.
      ConfigMismatchError: the folder's model was trained with other settings.
    """
    logger = Logger.load(run.pretraining.folder)
    market = logger.config
    if explore is not None:
        market = dataclasses.replace(market, explore=explore)
    config = run.reward_config_of(settings)
    world = make_world(market, run.settings.data.market.sequences or None)
    sessions = FreshSessions(
        world,
        logger.ranker,
        batch_size=settings.batch_size // jax.process_count(),
        history_length=config.history_length,
        seed=seed * jax.process_count() + jax.process_index(),
    )
    phase = reward_phase(run.dataset, run.items, config, settings, seed, sessions)
    bound = {"sessions": {"seed": seed, "explore": market.explore}}
    return run.train_shared(phase, folder, settings, **bound), config
