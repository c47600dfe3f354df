"""Tunes each compared system with the same number of trials and the same procedure.

Every trial trains the models that choose slates, with the workdir's shared data, tokens,
pre-training, reward model and stages, and serves sessions of the split "tune", which nothing else
uses. The criterion is the value of the slates, expected clicks times full bids, by the reward
model. Payments have no effect, and the true value is shown but not used.

    python -m experiments.tune --workdir=runs/market-tiny

Prints the trials, marks the best one of each system, and adds them to results.json. A finished
trial is not repeated. The best settings are entered in the configs by hand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.settings import Settings
from ega_jax.evaluation.report import read_results, write_results
from ega_jax.evaluation.serving import judges_of, served
from ega_jax.phases.pretraining import Pretraining
from ega_jax.systems import UNPRICED, compared
from ega_jax.training.mesh import data_mesh
from experiments.common import command, workdirs
from experiments.common.runs import changed, open_system, truth_of

flags.adopt_module_key_flags(command)
TRIALS: dict[str, tuple[dict[str, Any], ...]] = {
    "mca": (
        {"cascade.cga.learning_rate": 1e-3},
        {"cascade.cga.learning_rate": 3e-3},
        {"cascade.cga.learning_rate": 1e-3, "cascade.funnel.num_ranked": 16},
        {"cascade.cga.learning_rate": 1e-3, "cascade.cross_dqn.num_steps": 1000},
    ),
    "gr": (
        {"alignment.learning_rate": 1e-4, "one_rec.strength": 0.1},
        {"alignment.learning_rate": 1e-4, "one_rec.strength": 0.5},
        {"alignment.learning_rate": 1e-3, "one_rec.strength": 0.1},
        {"alignment.learning_rate": 1e-3, "one_rec.strength": 0.5},
    ),
    "ega": (
        {"alignment.learning_rate": 1e-4, "allocation.alpha": 1.2},
        {"alignment.learning_rate": 1e-4, "allocation.alpha": 2.4},
        {"alignment.learning_rate": 1e-3, "allocation.alpha": 1.2},
        {"alignment.learning_rate": 1e-3, "allocation.alpha": 2.4},
    ),
}
_SYSTEMS = flags.DEFINE_list("tuned", list(TRIALS), "Systems to tune.")
_SESSIONS = flags.DEFINE_integer(
    "tuning_sessions", 256, "About how many sessions a trial serves; whole batches.", 1
)


def main() -> None:
    """Runs the command."""
    settings, workdir = workdirs.find_workdir()
    command.check_named("system", _SYSTEMS.value, TRIALS)
    Pretraining(settings, workdir, data_mesh()).check_finished()
    place = f"{_SESSIONS.value} sessions"
    known = lambda system: read_results(workdir).get("tuning", {}).get(place, {}).get(system, {})
    for system in _SYSTEMS.value:
        for number, changes in enumerate(TRIALS[system]):
            if title_of(changes) not in known(system):
                found = try_out(settings, workdir, system, number)
                write_results(workdir, {"tuning": {place: {system: {title_of(changes): found}}}})
                jax.clear_caches()  # The number of compiled functions in a process is limited.
        print_trials(known(system), f"{system}, {place}")


def try_out(
    settings: Settings, workdir: Path, system: str, number: int
) -> dict[str, dict[str, float]]:
    """Trains the slates of one trial of a system, and serves it; see `serving.served`."""
    own = changed(settings, {**compared()[system], **TRIALS[system][number], **UNPRICED})
    folder = workdir / "tuning" / f"{system}-{number}"
    run = open_system(Pretraining(own, workdir, data_mesh()), folder)
    batches = run.sessions("tune", _SESSIONS.value, settings.auction.batch_size)
    return served(run.mechanism, batches, judges_of(truth_of(run)))


def title_of(changes: Mapping[str, Any]) -> str:
    """Returns a trial's changes as text."""
    return ", ".join(f"{field}={value}" for field, value in changes.items())


def print_trials(trials: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Prints one line per trial; the best by the model is marked."""
    value = lambda name, scorer: trials[name].get(scorer, {}).get("value", float("nan"))
    best = max(trials, key=lambda name: value(name, "model"))
    table = Table("", "trial", "value, model", "value, truth", title=title, title_justify="left")
    for name in trials:
        figures = (f"{value(name, scorer):.4g}" for scorer in ("model", "truth"))
        table.add_row("*" if name == best else "", name, *figures)
    Console(width=100).print(table)


if __name__ == "__main__":
    command.run(main, __doc__)
