"""Reward model, alignment, payment network: the second half of the main job.

Takes a workdir that experiments.pretrain has finished; trains the reward model on logged feedback,
aligns the generator by policy gradient, tabulates what every report of an advertiser leads to,
trains the payment network on that table, and scores the auction under every payment rule. Run it
again with the same workdir to continue where it stopped; in training Ctrl-C and SIGTERM save first.

    python -m experiments.auction_align --workdir=runs/market-tiny
    python -m experiments.auction_align --workdir=runs/market-tiny --system=calm \\
        --config.allocation.beta=8

The reward model is kept in reward/ and the rest in systems/SYSTEM/: checkpoints/, metrics/,
tensorboard/, figures/, tables/ and, for EGA, mechanism/, which
`ega_jax.mechanism.Mechanism.restore` reads. The scores are added to results.json.
"""

import time
from pathlib import Path
from typing import Any

from absl import flags

from ega_jax.baselines.systems import mechanism_of, training_of
from ega_jax.data.market.clicks import Truth
from ega_jax.evaluation.auction import judge, systems
from ega_jax.evaluation.report import (
    plot_curves,
    print_systems,
    print_table,
    read_results,
    write_results,
)
from ega_jax.evaluation.response import evaluate_response
from ega_jax.mechanism import TRUTHFUL, Mechanism, mechanism_folder
from ega_jax.reward.model import RewardConfig
from ega_jax.reward.system import check_levers
from ega_jax.training.auction import AuctionTraining
from ega_jax.training.checkpoints import check_workdir, read_config
from ega_jax.training.mesh import data_mesh
from ega_jax.training.pretraining import Pretraining
from ega_jax.training.progress import ProgressReport
from ega_jax.types import Params
from experiments import command

command.define_config()
flags.adopt_module_key_flags(command)
TEST_ROWS = 20_000  # Most test sessions that the reward model is measured on.
CURVES = {  # Phase -> what is drawn of it over time, as far as it is measured.
    "alignment": ["loss", "contribution", "kl", "slate_log_prob", "agreement"],
    "payment_rate": ["loss", "revenue", "regret", "multiplier"],
    "payment_threshold": ["loss", "revenue", "regret", "multiplier"],
}
_SYSTEM = flags.DEFINE_string("system", "ega", "Names the system; several may share a workdir.")


def main() -> None:
    """Runs the command."""
    config, workdir = command.open_workdir()
    pretraining = Pretraining(config, workdir, data_mesh())
    results = train_and_measure(open_system(pretraining, workdir / "systems" / _SYSTEM.value))
    print_table({"reward": results["reward"]}, title=config["name"])
    print_systems(results["systems"], title=config["name"])
    print(f"results.json is in {workdir}, models and figures in {workdir / 'systems'}")


def open_system(pretraining: Pretraining, folder: Path) -> AuctionTraining:
    """A system to be trained in `folder`, which is bound to its settings.

    Raises:
      ConfigMismatchError: the folder holds a system of other settings.
    """
    check_workdir(folder, pretraining.config, command.FREE_IN_SYSTEM)
    return training_of(pretraining, folder)


def train_and_measure(run: AuctionTraining) -> dict[str, Any]:
    """Trains a system to its end, or restores it, scores it, and adds that to `results.json`.

    Returns:
      What was added: `reward`, `systems` and `auction_seconds`.
    """
    start = time.perf_counter()
    workdir, name = run.pretraining.workdir, run.system.name
    mechanism = mechanism_of(run)
    if run.config["auction"]["system"] == "ega":
        mechanism.save(mechanism_folder(workdir, name))
    results = {
        "reward": read_results(workdir).get("reward")
        or measure_reward(run, run.reward, run.reward_config),
        "systems": measure_systems(run, mechanism),
        "auction_seconds": time.perf_counter() - start,
    }
    write_results(workdir, results)
    for path in sorted((run.system / "metrics").glob("*.jsonl")):
        plot_curves(run.system, path.stem, CURVES.get(path.stem, ["loss"]))
    return results


def find_system() -> AuctionTraining:
    """The trained system that `--workdir` and `--system` name, by its own config.

    Raises:
      FileNotFoundError: there is none.
    """
    _, workdir = command.find_workdir()
    folder = workdir / "systems" / _SYSTEM.value
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{workdir} holds no system {_SYSTEM.value!r}: run experiments.auction_align first"
        )
    return training_of(Pretraining(read_config(folder), workdir, data_mesh()), folder)


def measure_reward(run: AuctionTraining, params: Params, config: RewardConfig) -> dict[str, float]:
    """Scores a reward model on the test sessions, and the true probabilities beside it."""
    batches = run.sessions("test", TEST_ROWS, run.config["reward"]["batch_size"])
    return evaluate_response(params, config, run.items, batches, truth_of(run))


def truth_of(run: AuctionTraining) -> Truth | None:
    """The log's true response model, where it has one."""
    folder = run.pretraining.folder
    return Truth.load(folder) if (folder / "truth").is_dir() else None


def measure_systems(
    run: AuctionTraining, mechanism: Mechanism, split: str = "test"
) -> dict[str, Any]:
    """Scores the allocation under every payment rule, and the exactly truthful mode."""
    settings, name = run.config["auction"], run.system.name
    truth = truth_of(run)
    modes = {name: (mechanism.levers, mechanism.rule)}
    if run.config["auction"]["system"] == "ega":
        bid_free = check_levers(mechanism.levers, {"bid_free": True, "reserve": 0.0})
        modes[f"{name}-{TRUTHFUL}"] = (bid_free, "clarke")
    results: dict[str, Any] = {}
    for mode, (levers, rule) in modes.items():
        with ProgressReport(f"judging {mode}", 0, settings["num_sessions"]) as progress:
            judged = judge(
                mechanism,
                levers,
                run.sessions(split, settings["num_sessions"], settings["batch_size"]),
                truth,
                settings["num_losing"],
                lambda done, progress=progress: progress.count(done, settings["num_sessions"]),
            )
        priced = systems(judged, mode, rule)
        results |= priced if mode == name else {mode: priced[mode]}
    return results


if __name__ == "__main__":
    command.run(main, __doc__)
