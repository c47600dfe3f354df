"""Compares the reward model with a pointwise one, which ignores the rest of the slate.

Trains both on the logged feedback of a pre-trained workdir, with several seeds, and evaluates them
on its test sessions; on the simulated market also the true probabilities. The difference is the
value of the slate's context for click prediction (paper sec. 4.2).

    python -m experiments.reward_control --workdir=runs/market-small/market-0

Prints means with 95 % Student intervals over seeds, and adds all metrics to results.json. Models
are stored in reward_control/; finished models are not trained again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.reward import reward_phase
from ega_jax.reward.model import RewardConfig
from ega_jax.reward.network import RewardSettings
from ega_jax.setting import part_of
from experiments.common import command
from experiments.common.runs import measure_reward
from experiments.common.seeds import mean_shown, measured_by_seed, pretrained_run

flags.adopt_module_key_flags(command)
KINDS = {"slate": True, "pointwise": False}  # Whether a slot attends to the others.
MEASURES = ("auc_poi", "logloss_poi", "ece_poi", "auc_image", "logloss_image", "ece_image")
_SEEDS = flags.DEFINE_integer("control_seeds", 3, "Number of seeds per model.", 1)


def main() -> None:
    """Runs the command."""
    run = pretrained_run()
    measured = lambda kind, seed: measure(run, kind, seed)
    found = measured_by_seed(run, "reward_control", KINDS, _SEEDS.value, measured)
    print_models(found, run.settings.name)


def measure(run: AuctionTraining, kind: str, seed: int) -> dict[str, float]:
    """Trains a model of one kind with one seed, or restores it, and measures it."""
    settings = dataclasses.replace(run.settings.reward, permutation_aware=KINDS[kind])
    own = part_of(settings, RewardSettings)
    sizes = RewardConfig(**run.pretraining.generator_config.shared, **own)
    phase = reward_phase(run.dataset, run.items, sizes, settings, seed)
    params = run.train_shared(phase, f"reward_control/{kind}-{seed}", settings)
    return measure_reward(run, params, sizes)


def print_models(found: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Prints one line per measure: both models, their difference paired by seed, the truth."""
    table = Table("measure", *KINDS, "difference", "truth", title=title, title_justify="left")
    seeds = [seed for seed in found["slate"] if seed in found["pointwise"]]
    for measure in MEASURES:
        values = {kind: [found[kind][seed][measure] for seed in seeds] for kind in KINDS}
        values["difference"] = [a - b for a, b in zip(*values.values(), strict=True)]
        truth = found["slate"][seeds[0]].get(f"truth_{measure}")
        table.add_row(measure, *map(mean_shown, values.values()), f"{truth:.4f}" if truth else "")
    Console(width=100).print(table)


if __name__ == "__main__":
    command.run(main, __doc__)
