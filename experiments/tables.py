"""Makes tables 2 and 3 of the paper: all systems, several seeds, scored by model and by truth.

Trains and scores each system with each seed. All seeds share the data. Systems of the same seed
share tokens, pre-training and reward model unless their settings differ. Finished runs are never
repeated: to continue, run the same command again. After every run, the tables of all finished runs
in the workdir are written.

    python -m experiments.tables --config=experiments/configs/market.py:small
    python -m experiments.tables --config=experiments/configs/market.py:tiny --seeds=0 \\
        --only=mca,gr,ega --results=/tmp/tables

Several processes of one host may share a workdir: a process skips a seed that another one works on,
and waits for it at the end. On several hosts, make the data first and give each host its own
`--seeds`.

RPM and click rates use about `auction.num_served` test sessions. bid_rpm is RPM at full bids
instead of the system's prices, so it compares the slates only. Psi tries all reports of the
advertisers in the slates, on about `auction.num_sessions` sessions. Intervals are 95 % Student
intervals over training seeds; the market and the sessions are the same for all seeds, so the
intervals do not cover the sampling of sessions. A third table compares EGA under GSP without and
with the policy gradient. The files table2.csv, table3.csv, alignment.csv, runs.csv (the values of
each run), tables.md and tables.png are written to `--results`.
"""

import itertools
import shutil
import time
from pathlib import Path

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.settings import Settings
from ega_jax.errors import UserError
from ega_jax.evaluation.comparison import REPORTED, SCORERS, SERVED, Scores, write_tables
from ega_jax.evaluation.report import read_results, write_results
from ega_jax.evaluation.serving import served
from ega_jax.payment.network import HEADS
from ega_jax.phases.pretraining import Pretraining
from ega_jax.setting import SYSTEM
from ega_jax.systems import KINDS, compared
from ega_jax.training.files import locked
from ega_jax.training.mesh import data_mesh
from experiments.common import command, workdirs
from experiments.common.runs import (
    changed,
    open_system,
    pretrained,
    train_and_measure,
    truth_of,
)

command.define_config()
flags.adopt_module_key_flags(command)
FREE = ("data.path", "data.market.sequences")  # Every other field binds the tables' workdir.
TABLES = {  # In addition to table2, which has every kind of system.
    "table3": ("ega", "ega-mtp", "ega-end", "ega-bid", "ega-gsp"),
    "alignment": ("ega-unaligned", "ega-gsp"),
}
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of every system.")
_ONLY = flags.DEFINE_list("only", None, "Systems to run; default: all.")
_RESULTS = flags.DEFINE_string("results", "experiments/results", "Folder for the tables.")


def main() -> None:
    """Runs the command."""
    only = list(compared()) if _ONLY.value is None else _ONLY.value
    command.check_named("system", only, compared())
    if not _SEEDS.value or not all(seed.isdecimal() for seed in _SEEDS.value):
        raise UserError(f"--seeds={','.join(_SEEDS.value)}: name seeds, each a number from 0 on")
    if jax.process_count() > 1:
        raise UserError("--several_hosts: tables are made by one process, or by one per seed")
    settings, workdir = workdirs.open_workdir(Settings, free=FREE)
    if settings.auction.rule not in HEADS:
        raise UserError(
            f"config.auction.rule: tables have EGA at learned prices, {' or '.join(HEADS)}"
        )
    start, folder = time.perf_counter(), Path(_RESULTS.value)
    runs = [(int(seed), name) for seed in _SEEDS.value for name in only]
    scores = lambda: {run: known(workdir, *run) for run in runs}
    make_data(settings, workdir)
    for wait, (seed, name) in itertools.product((False, True), runs):
        systems = workdir / f"seed-{seed}" / "systems"
        systems.mkdir(parents=True, exist_ok=True)
        with locked(systems, wait=wait) as is_ours:
            if not is_ours or known(workdir, seed, name):
                continue
            print_grid(scores(), running=(seed, name))
            run_system(settings, workdir, seed, name)
            jax.clear_caches()  # The number of compiled functions in a process is limited.
            write_all(workdir, folder)
    print_grid(scores())
    write_all(workdir, folder)
    print((folder / "tables.md").read_text())
    print(f"tables and figure are in {folder}; {(time.perf_counter() - start) / 60:.1f} minutes")


def write_all(workdir: Path, folder: Path) -> None:
    """Writes the tables of all finished runs in the workdir."""
    numbers = (path.name.removeprefix("seed-") for path in workdir.glob("seed-*"))
    seeds = sorted(int(number) for number in numbers if number.isdecimal())
    with locked(workdir):
        every = {(seed, name): known(workdir, seed, name) for seed in seeds for name in compared()}
        write_tables(every, {"table2": tuple(KINDS)} | TABLES, folder)


def make_data(settings: Settings, workdir: Path) -> None:
    """Makes the market that all runs share, unless a log is given or the market exists."""
    with locked(workdir):
        if not settings.data.path and not (workdir / "seed-0" / "data").is_dir():
            first = settings.changed({"seed": 0})
            _ = Pretraining(first, workdir / "seed-0", data_mesh()).dataset


def run_system(settings: Settings, workdir: Path, seed: int, name: str) -> None:
    """Trains and scores one system with one seed; reuses parts that earlier runs trained."""
    folder_name, trained_as = folders_of(seed, name)
    own = changed(settings, {"seed": seed, **compared()[trained_as]})
    main_folder, folder = workdir / f"seed-{seed}", workdir / folder_name
    if folder != workdir / "seed-0":
        data = settings.data.path or str(workdir / "seed-0" / "data")
        own = own.changed({"data.path": data})
    for part in ("tokenizers", "reward"):  # Same data, seed and settings.
        if folder != main_folder and (main_folder / part).is_dir() and not (folder / part).exists():
            partial = folder / f".{part}.partial"  # A partial copy is made again.
            shutil.copytree(main_folder / part, partial, dirs_exist_ok=True)
            partial.rename(folder / part)
    run = open_system(pretrained(own, folder), folder / "systems" / trained_as)
    if run.name not in read_results(folder).get("systems", {}):
        train_and_measure(run)
    auction = settings.changed(compared()[name]).auction
    batches = run.sessions("test", auction.num_served, auction.batch_size)
    found = served(run.mechanism, batches, truth_of(run), auction.rule)
    write_results(folder, {"served": {name: found}})


def folders_of(seed: int, name: str) -> tuple[str, str]:
    """Returns the names of a run's workdir and system folder.

    A system with another pre-training has a workdir of its own. A system that differs from another
    one only in the payment rule is scored with that one, under `OTHER-RULE`.
    """
    systems, of_systems = compared(), Settings.groups(SYSTEM)
    own = {field for field in systems[name] if field.split(".")[0] not in of_systems}
    workdir = f"seed-{seed}-{name}" if own else f"seed-{seed}"
    without_rule = lambda fields: {k: v for k, v in fields.items() if k != "auction.rule"}
    wanted = without_rule(systems[name])
    return workdir, next(name for name in systems if without_rule(systems[name]) == wanted)


def known(workdir: Path, seed: int, name: str) -> dict[str, dict[str, float]]:
    """Returns scorer -> metric -> value of a finished run, NaN if not finite; else empty."""
    found = read_results(workdir / folders_of(seed, name)[0])
    if name not in found.get("served", {}) or name not in found.get("systems", {}):
        return {}
    sources = {"served": SERVED, "systems": REPORTED}
    return {
        scorer: {
            metric: found[source][name][scorer][metric]
            for source, metrics in sources.items()
            for metric in metrics
        }
        for scorer in SCORERS
        if scorer in found["served"][name]
    }


def print_grid(scores: Scores, running: tuple[int, str] | None = None) -> None:
    """Prints the finished runs: one line per system, one column per seed."""
    seeds, names = dict.fromkeys(s for s, _ in scores), dict.fromkeys(n for _, n in scores)
    title = f"{sum(map(bool, scores.values()))} of {len(scores)} runs finished"
    columns = "system", *(f"seed {seed}" for seed in seeds)
    grid = Table(*columns, title=title, title_justify="left")
    for name in names:
        waiting = lambda seed, name=name: "running" if (seed, name) == running else "-"
        grid.add_row(name, *("done" if scores[s, name] else waiting(s) for s in seeds))
    Console(width=100).print(grid)


if __name__ == "__main__":
    command.run(main, __doc__)
