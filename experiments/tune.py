"""Tunes each compared system with the same number of trials, by an independent judge.

Trials run on market 100, which no table uses, and are measured on the split "tune", on which
nothing is trained. The judge is a reward model of another seed, larger, and trained on two million
fresh sessions of this market, half of them with uniformly drawn slates; no system sees it. The
criterion is the value at equal clicks, as in the tables: that of the trial's frontier at the
CTR-poi of MCA with its defaults. MCA's slates follow no lever: its trials have one point each and
count by its value; look at its clicks too. The truth is shown beside it and decides nothing.

    python -m experiments.tune --config=experiments/configs/market.py:tiny
    python -m experiments.tune --config=experiments/configs/market.py:small --best_of=market-tiny

The first makes all trials, the second the best three of each system by the first. Every trial adds
a record to the folder `trials` of `--results`, with `--asked_by`; a trial whose record exists is
not repeated. The best settings are entered in the configs by hand.
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.settings import Settings
from ega_jax.errors import UserError
from ega_jax.evaluation.lifts import value_at_clicks
from ega_jax.evaluation.records import Record, write_record
from ega_jax.evaluation.serving import Judge, by_reward_model, figures_of
from ega_jax.phases.reward import batch_predictor
from ega_jax.phases.streamed import LARGE, streamed_reward
from ega_jax.systems import PAPER, UNPRICED, compared
from ega_jax.training.files import locked, read_json
from ega_jax.training.loop import NonFiniteLossError
from experiments.common import command, workdirs
from experiments.common.measuring import SLATES_ONLY, Measured, Sessions
from experiments.common.protocol import (
    TUNING_MARKET,
    Market,
    changes_pretraining,
    manifest,
    read_own_record,
)

command.define_config()
flags.adopt_module_key_flags(command)
JUDGE_SEED, JUDGE_EXPLORES = 1000, 0.5
JUDGES = "judge", "truth"
REFERENCE = "mca"  # The system whose clicks, with its defaults, all trials are valued at.
DEFAULTS: dict[str, Any] = {}  # The trial that changes nothing.
BY_REVENUE = {  # Tokens by expected revenue, creatives by clicks, an unbiased policy gradient.
    "allocation.token_value": "ecpm",
    "allocation.creatives_by": "clicks",
    "allocation.alpha": 5.0,
    "alignment.estimator": "leave_one_out",
}
TRIALS: dict[str, tuple[dict[str, Any], ...]] = {
    "mca": (
        DEFAULTS,
        {"cascade.cga.learning_rate": 1e-3},
        {"cascade.cga.learning_rate": 1e-3, "cascade.funnel.num_ranked": 16},
        {"cascade.cga.learning_rate": 1e-3, "cascade.cross_dqn.num_steps": 1000},
    ),
    "gr": (
        DEFAULTS,
        {"alignment.learning_rate": 1e-4},
        {"alignment.learning_rate": 1e-4, "one_rec.strength": 0.5},
        {"one_rec.strength": 0.5},
    ),
    "ega": (
        PAPER,
        BY_REVENUE,
        BY_REVENUE | {"allocation.alpha": 8.0},
        BY_REVENUE | {"alignment.num_steps": 0},
    ),
}
_SYSTEMS = flags.DEFINE_list("tuned", list(TRIALS), "Systems to tune.")
_SESSIONS = flags.DEFINE_integer(
    "tuning_sessions", 1024, "How many sessions a trial serves at least.", 1
)
_RESULTS = flags.DEFINE_string(
    "results", "experiments/results", "Folder of the records.", allow_override=True
)  # Other commands have a flag of this name.
_ASKED_BY = flags.DEFINE_string("asked_by", "grid", "Who asks for these trials, for the records.")
_BEST_OF = flags.DEFINE_string("best_of", None, "Config name: only its best trials are made.")
_BEST = flags.DEFINE_integer("best", 3, "How many trials of each system `--best_of` takes.", 1)


def main() -> None:
    """Runs the command."""
    command.check_named("system", _SYSTEMS.value, TRIALS)
    settings, workdir = workdirs.open_workdir(Settings, free=workdirs.PATHS, check=check)
    results = results_folder()
    market = Market(TUNING_MARKET, settings, workdir, results, Sessions(_SESSIONS.value, 1, 1))
    trials = market.workdir / "tuning"
    trials.mkdir(parents=True, exist_ok=True)
    for system in _SYSTEMS.value:
        for changes in asked_of(system):
            with locked(trials):  # Another process may tune another system.
                try_out(market, system, changes)
        print_trials(recorded(results, settings.name, system), f"{system}, {settings.name}")


def check(settings: Settings) -> None:
    """Checks that trials can be made with these settings.

    Raises:
      UserError: a log is given, or there are no trials for `--best_of`.
    """
    if settings.data.path:
        raise UserError("config.data.path: tuning makes the market and its judge; leave it empty")
    for system in _SYSTEMS.value:
        asked_of(system)


def asked_of(system: str) -> Sequence[Mapping[str, Any]]:
    """The changes of a system's trials: all, or the best ones with the config `--best_of`.

    Raises:
      UserError: there are no trials of that config.
    """
    if not _BEST_OF.value:
        return TRIALS[system]
    return best(recorded(results_folder(), _BEST_OF.value, system), _BEST.value)


def results_folder() -> Path:
    """The folder that holds the folder of records."""
    return Path(_RESULTS.value).expanduser()


def try_out(market: Market, system: str, changes: Mapping[str, Any]) -> Record:
    """Trains the slates of a trial, measures and records it; or reads its record."""
    path = record_path(market.results, market.settings.name, system, changes)
    asked = market.asked(settings_of(system, changes))
    if not path.exists():
        trial = {"system": system, "changes": dict(changes), "asked_by": _ASKED_BY.value} | asked
        write_record(path, trial | valued(market, system, changes) | {"manifest": manifest()})
        jax.clear_caches()  # The number of compiled functions in a process is limited.
    return read_own_record(path, asked)


def settings_of(system: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial that differ from the config's; prices play no part."""
    return {**compared()[system], **changes, **UNPRICED}


def valued(market: Market, system: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a trial's frontier, and its value at the clicks of the reference, by each judge.

    A trial that fails because a loss is not finite, or whose reference failed, says so instead.
    """
    is_reference = system == REFERENCE and not changes
    reference = {} if is_reference else try_out(market, REFERENCE, DEFAULTS)
    if "failed" in reference:
        return {"failed": "the reference has failed"}
    judge = judge_of(market)
    try:
        frontier = frontier_of(market, system, changes, judge)
    except NonFiniteLossError as error:
        return {"failed": str(error)}
    clicks_of = lambda name: reference.get("frontier", frontier)[0][name]["ctr_poi"]
    found = {name: value_of(frontier, clicks_of(name), name) for name in JUDGES}
    return {"frontier": frontier} | found


def frontier_of(
    market: Market, system: str, changes: Mapping[str, Any], judge: Judge
) -> list[dict[str, Any]]:
    """Returns the points of a trial's frontier by each judge, that of its own levers first."""
    label = f"{system}-{number_of(changes)}"
    workdir = market.workdir.name + f"-{label}" * changes_pretraining(changes)
    run = market.open(settings_of(system, changes), workdir, f"tuning/{label}")
    trial = Measured(run, SLATES_ONLY, market.sessions, "tune", {"judge": judge})
    return [
        {"lever": lever, "setting": setting} | {judge: figures_of(point[judge]) for judge in JUDGES}
        for (lever, setting), point in trial.frontier.items()
    ]


def judge_of(market: Market) -> Judge:
    """The independent judge of the market, trained first if it is not there."""
    run = market.open({}, market.workdir.name, "tuning/judge")
    settings = dataclasses.replace(run.settings.reward, **LARGE)
    params, config = streamed_reward(run, settings, "judge", JUDGE_SEED, JUDGE_EXPLORES)
    predict = batch_predictor(config, run.items)
    return by_reward_model(lambda batch: predict(params, batch))


def record_path(results: Path, name: str, system: str, changes: Mapping[str, Any]) -> Path:
    """The record of a trial."""
    return results / "trials" / f"{name}-{system}-{number_of(changes)}.json"


def recorded(results: Path, name: str, system: str) -> list[Record]:
    """The records of a system's trials with the config of a name."""
    paths = sorted((results / "trials").glob(f"{name}-{system}-*.json"))
    return [record for record in map(read_json, paths) if record["system"] == system]


def best(records: Sequence[Record], number: int) -> list[Mapping[str, Any]]:
    """The changes of the best trials by the independent judge, without those that failed.

    Raises:
      UserError: no trial has succeeded.
    """
    valid = [record for record in records if "failed" not in record]
    if not valid:
        raise UserError(f"--best_of={_BEST_OF.value}: there is no trial of it in {_RESULTS.value}")
    return [record["changes"] for record in sorted(valid, key=_rank, reverse=True)[:number]]


def _rank(record: Record) -> float:
    """A trial's value by the judge; the lowest if it failed or has too few clicks."""
    value = record.get("judge")
    return -math.inf if value is None else value


def value_of(frontier: Sequence[Mapping[str, Any]], clicks: float, judge: str) -> float:
    """The value of a frontier at a CTR-poi; NaN if no point has as many clicks.

    A system that follows no lever has one point, which hardly ever has exactly so many clicks. It
    counts by the value of this point.
    """
    value, ctr_poi = (
        np.array([point[judge][name] for point in frontier]) for name in ("value", "ctr_poi")
    )
    return float(value[0]) if len(value) == 1 else value_at_clicks(value, ctr_poi, clicks)


def title_of(changes: Mapping[str, Any]) -> str:
    """Returns a trial's changes as text."""
    return ", ".join(f"{field}={value}" for field, value in changes.items()) or "defaults"


def number_of(changes: Mapping[str, Any]) -> str:
    """A number that stands for a trial's changes in names of files."""
    return f"{zlib.crc32(title_of(changes).encode()):08x}"


def print_trials(records: Sequence[Record], title: str) -> None:
    """Prints one line per trial; the best by the judge is marked."""
    columns = "", "trial", "value at equal clicks, judge", "truth", "own CTR-poi", "asked by"
    table = Table(*columns, title=title, title_justify="left")
    first = max(map(_rank, records))
    for record in records:
        mark = "*" if _rank(record) == first else ""
        table.add_row(mark, title_of(record["changes"]), *_shown(record), record["asked_by"])
    Console(width=120).print(table)


def _shown(record: Record) -> list[str]:
    if "failed" in record:
        return ["failed", "", ""]
    figures = [*(record[judge] for judge in JUDGES), record["frontier"][0]["judge"]["ctr_poi"]]
    return ["unreached" if figure is None else f"{figure:.4g}" for figure in figures]


if __name__ == "__main__":
    command.run(main, __doc__)
