"""Steps shared by several commands: pre-training, and training, finding and measuring systems."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ega_jax.auction.system import check_levers
from ega_jax.baselines.settings import Settings
from ega_jax.data.market.clicks import Truth
from ega_jax.evaluation.auction import Judged, judge, systems
from ega_jax.evaluation.interest import evaluator_of
from ega_jax.evaluation.report import plot_curves, read_results, write_results
from ega_jax.evaluation.response import evaluate_response
from ega_jax.mechanism import TRUTHFUL, Mechanism, mechanism_folder
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.reward import weighting_report
from ega_jax.reward.model import RewardConfig
from ega_jax.setting import SYSTEM
from ega_jax.systems import check_settings, training_of
from ega_jax.training.checkpoints import (
    check_workdir,
    is_complete,
    read_arrays,
    read_config,
    read_metadata,
    save_tree,
)
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import metrics_files
from ega_jax.training.progress import ProgressReport
from ega_jax.types import Params
from experiments.common import command, workdirs

TEST_ROWS = 20_000  # About how many test sessions the reward model is evaluated on.
CURVES = {  # Phase -> metrics to draw over time, if the phase has them.
    "alignment": ["loss", "value", "kl", "slate_log_prob", "agreement"],
    "payment_rate": ["loss", "revenue", "regret", "multiplier"],
    "payment_threshold": ["loss", "revenue", "regret", "multiplier"],
}


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Returns settings with fields changed by dotted name, checked for their kind of system.

    Raises:
      UserError: there is no such field, a value is out of its range, or fields do not fit.
    """
    settings = settings.changed(changes)
    check_settings(settings)
    return settings


def pretrained(settings: Settings, workdir: Path) -> Pretraining:
    """Binds a workdir to settings, and returns its finished pre-training; trains it if needed.

    Raises:
      ConfigMismatchError: the workdir was made with other settings.
      UserError: the data are sequences, which have no auction.
    """
    workdirs.bind_workdir(workdir, settings)
    run = Pretraining(settings, workdir, data_mesh())
    _ = run.ad_log
    if not run.is_finished or "test" not in read_results(workdir):
        pretrain(run)
    return run


def pretrain(run: Pretraining) -> dict[str, Any]:
    """Finishes or restores pre-training, evaluates it, and adds the results to `results.json`.

    Returns:
      The added results: `tokenizer`, `test`, `seconds` and `samples_per_second`.
    """
    start = time.perf_counter()
    measure = evaluator_of(run)
    rows = run.settings.evaluation.validation_rows
    held_out = run.batches(run.validation_split, rows)
    params = run.train_generator(lambda params: measure(params, held_out))
    results = {
        "tokenizer": {name: tokens.report for name, tokens in run.tokens.items()},
        "test": measure(params, run.batches("test")),
        "seconds": time.perf_counter() - start,
        "samples_per_second": run.samples_per_second(),
    }
    write_results(run.workdir, results)
    plot_curves(run.workdir, "generator")
    return results


def open_system(pretraining: Pretraining, folder: Path) -> AuctionTraining:
    """Binds `folder` to the settings of a system, and returns the system's training.

    Raises:
      ConfigMismatchError: the folder holds a system with other settings.
    """
    settings = pretraining.settings
    check_workdir(folder, settings.to_dict(), settings.free(SYSTEM))
    return training_of(pretraining, folder)


def find_system(workdir: Path, name: str) -> AuctionTraining:
    """Finds a trained and measured system of a workdir, with its own settings.

    Raises:
      FileNotFoundError: there is no such system, or its training is not finished.
    """
    folder = workdir / "systems" / name
    if not (folder / "config.json").exists():
        found = sorted(path.parent.name for path in workdir.glob("systems/*/config.json"))
        raise FileNotFoundError(
            f"{workdir} holds no system {name!r}, but {', '.join(found) or 'none'}: run "
            "experiments.auction_align, or experiments.tables, whose workdirs are market-0, ..."
        )
    if name not in read_results(workdir).get("systems", {}):
        raise FileNotFoundError(
            f"{folder} is not trained to its end: run experiments.auction_align first"
        )
    settings = Settings.from_dict(read_config(folder))
    return training_of(Pretraining(settings, workdir, data_mesh()), folder)


def find_systems(workdir: Path, named: str) -> list[AuctionTraining]:
    """Finds the systems of a workdir by what `--system` says: names with commas between, or `all`.

    Raises:
      FileNotFoundError: there is no such system, or its training is not finished.
    """
    if named == "all":
        named = ",".join(trained_systems(workdir)) or command.EGA
    return [find_system(workdir, name) for name in dict.fromkeys(named.split(","))]


def trained_systems(workdir: Path) -> list[str]:
    """Returns the names of the trained and measured systems of a workdir, in order of training."""
    measured = read_results(workdir).get("systems", {})
    return [name for name in measured if (workdir / "systems" / name / "config.json").exists()]


def train_and_measure(run: AuctionTraining) -> dict[str, Any]:
    """Finishes or restores a system's training, scores it, and adds the results to `results.json`.

    Returns:
      The added results: `reward`, `systems` and `auction_seconds`.
    """
    start = time.perf_counter()
    workdir, name = run.pretraining.workdir, run.name
    mechanism = train_system(run)
    results = {
        "reward": read_results(workdir).get("reward")
        or measure_reward(run, run.reward, run.reward_config),
        "systems": measure_systems(run, mechanism),
        "auction_seconds": {name: time.perf_counter() - start},
    }
    # An earlier run with another payment rule may have stored scores under this name.
    systems = results["systems"] | {f"{name}-{mechanism.rule}": None}
    write_results(workdir, results | {"systems": systems})
    return results


def shared_phases(workdir: Path) -> list[Path]:
    """Returns the folders of the phases of training that the systems of a workdir share."""
    return [workdir, workdir / "reward", *sorted(workdir.glob("stages/*"))]


def train_system(run: AuctionTraining) -> Mechanism:
    """Finishes or restores a system's training; saves its mechanism and draws its curves."""
    mechanism = run.mechanism
    mechanism.save(mechanism_folder(run.pretraining.workdir, run.name))
    for path in metrics_files(run.folder):
        plot_curves(run.folder, path.stem, CURVES.get(path.stem, ["loss"]))
    return mechanism


def measure_reward(run: AuctionTraining, params: Params, config: RewardConfig) -> dict[str, float]:
    """Scores a reward model, and the true probabilities if known, on the test sessions."""
    batches = run.sessions("test", TEST_ROWS, run.settings.reward.batch_size)
    figures = evaluate_response(params, config, run.items, batches, truth_of(run))
    return figures | weighting_report(run.dataset, run.settings.reward)


def truth_of(run: AuctionTraining) -> Truth | None:
    """Returns the log's true response model, `None` if unknown."""
    folder = run.pretraining.folder
    return Truth.load(folder) if (folder / "truth").is_dir() else None


def measure_systems(
    run: AuctionTraining, mechanism: Mechanism, split: str = "test"
) -> dict[str, Any]:
    """Scores the allocation under every payment rule, and the exactly truthful mode if any.

    The outcomes of all reports are kept for `kept_judged`.
    """
    settings, name = run.settings.auction, run.name
    truth = truth_of(run)
    modes = {name: (mechanism, mechanism.levers, mechanism.rule)}
    if mechanism.system.judged_truthful:
        bid_free = check_levers(mechanism.levers, {"bid_free": True, "reserve": 0.0})
        free = mechanism.with_book(run.truthful_book(bid_free))
        modes[f"{name}-{TRUTHFUL}"] = (free, bid_free, "clarke")
    results: dict[str, Any] = {}
    for mode, (judged_by, levers, rule) in modes.items():
        with ProgressReport(f"judging {mode}", 0, settings.num_sessions) as progress:
            judged = judge(
                judged_by,
                levers,
                run.sessions(split, settings.num_sessions, settings.batch_size),
                truth,
                settings.num_losing,
                lambda done, progress=progress: progress.count(done, settings.num_sessions),
            )
        if mode == name:
            keep_judged(run, judged, split)
        priced = systems(judged, mode, rule)
        results |= priced if mode == name else {mode: priced[mode]}
    return results


def keep_judged(run: AuctionTraining, judged: Mapping[str, Judged], split: str) -> None:
    """Saves the outcomes of all reports of a system's ads on a split, by judge."""
    columns = {judge: dataclasses.asdict(each) for judge, each in judged.items()}
    save_tree(_judged_folder(run, split), columns, _judged_under(run))


def kept_judged(run: AuctionTraining, split: str = "test") -> dict[str, Judged] | None:
    """Reads what `measure_systems` kept; None if that was under other settings, or never."""
    path = _judged_folder(run, split)
    if not is_complete(path) or read_metadata(path) != _judged_under(run):
        return None
    return {judge: Judged(**columns) for judge, columns in read_arrays(path).items()}


def _judged_folder(run: AuctionTraining, split: str) -> Path:
    return run.folder / "judged" / split


def _judged_under(run: AuctionTraining) -> dict[str, Any]:
    """The settings that may change in a system's folder, and change what is judged."""
    settings, names = run.settings.auction, ("num_sessions", "num_losing", "batch_size", "reserves")
    return {name: getattr(settings, name) for name in names} | vars(run.dataset.summary)
