"""Tables 2 and 3 of the paper: every system, several seeds, scored by model and by truth.

Trains and scores each system with each seed, in one workdir of its own; systems of one seed share
data, tokens, pre-training and reward model as far as they may. What is finished is never repeated:
run it again with the same workdir to continue. Tables are written after every run.

    python -m experiments.tables --config=experiments/configs/market.py:small
    python -m experiments.tables --config=experiments/configs/market.py:tiny --num_seeds=1 \\
        --only=mca,gr,ega --results=/tmp/tables

RPM and click rates are of `auction.num_served` test sessions; Psi, which tries every report of
every advertiser, of `auction.num_sessions`. An interval is Student's over seeds, 95 %. Writes
table2.csv, table3.csv, tables.md and tables.png into `--results`.
"""

import csv
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from scipy import stats

from ega_jax.baselines.systems import mechanism_of, training_of
from ega_jax.evaluation.levers import served
from ega_jax.evaluation.report import read_results, write_results
from ega_jax.training.checkpoints import check_workdir
from ega_jax.training.mesh import data_mesh
from ega_jax.training.pretraining import Pretraining
from experiments import auction_align, command
from experiments.pretrain import pretrain

command.define_config()
flags.adopt_module_key_flags(command)
SYSTEMS = {  # What each sets otherwise than EGA.
    "mca": {"auction.system": "mca"},
    "gr": {
        "auction.system": "gr",
        "auction.rule": "gsp",
        "allocation.bid_free": True,
        "payment.heads": (),
        "payment.probes": (),
    },
    "ega": {},
    "ega-mtp": {"generator.multi_token": False},
    "ega-end": {"alignment.joint_rows": 2},
    "ega-bid": {"allocation.token_bid": "mean"},
    "ega-gsp": {"auction.rule": "gsp"},
}
TABLES = {"table2": ("mca", "gr", "ega"), "table3": ("ega", *list(SYSTEMS)[3:])}
SERVED, REPORTED = ("rpm", "ctr_poi", "ctr_img"), ("psi", "psi_10")
METRICS = (*SERVED, *REPORTED)
SCORERS = ("model", "truth")
_SEEDS = flags.DEFINE_integer("num_seeds", 3, "Seeds of every system.", 1)
_ONLY = flags.DEFINE_list("only", list(SYSTEMS), "Systems to run.")
_RESULTS = flags.DEFINE_string("results", "experiments/results", "Where the tables are written.")


def main() -> None:
    """Runs the command."""
    config, workdir = command.open_workdir(free=("data.path",))
    unknown = set(_ONLY.value) - set(SYSTEMS)
    if unknown:
        raise ValueError(f"no system {', '.join(sorted(unknown))}; there are {', '.join(SYSTEMS)}")
    runs = [(seed, name) for seed in range(_SEEDS.value) for name in _ONLY.value]
    start, folder = time.perf_counter(), Path(_RESULTS.value)
    for number, (seed, name) in enumerate(runs):
        scores = {run: known(workdir, *run) for run in runs}
        print_grid(scores, running=(seed, name))
        if not scores[seed, name]:
            run_system(config, workdir, seed, name)
            jax.clear_caches()  # A process holds only so many compiled functions.
        write_tables({run: known(workdir, *run) for run in runs[: number + 1]}, folder)
    print((folder / "tables.md").read_text())
    print(f"tables and figure are in {folder}; {(time.perf_counter() - start) / 60:.1f} minutes")


def run_system(config: Mapping[str, Any], workdir: Path, seed: int, name: str) -> None:
    """Trains and scores one system with one seed; what others have trained before is shared."""
    settings = changed(config, {"seed": seed, **SYSTEMS[name]})
    main_folder, folder = workdir / f"seed-{seed}", workdir / folders_of(seed, name)[0]
    first = workdir / "seed-0"
    if folder != first:
        settings["data"]["path"] = config["data"]["path"] or str(first / "data")
        if not (first / "data").is_dir() and not config["data"]["path"]:
            _ = Pretraining(changed(config, {"seed": 0}), first, data_mesh()).dataset
    for part in ("tokenizers", "reward"):  # Of the same data, seed and settings.
        if folder != main_folder and (main_folder / part).is_dir() and not (folder / part).exists():
            shutil.copytree(main_folder / part, folder / part)
    check_workdir(folder, settings, command.FREE)
    pretraining = Pretraining(settings, folder, data_mesh())
    if "test" not in read_results(folder):
        pretrain(pretraining)
    run = training_of(pretraining, folder / "systems" / folders_of(seed, name)[1])
    if run.system.name not in read_results(folder).get("systems", {}):
        auction_align.train_and_measure(run)
    auction = settings["auction"]
    batches = run.sessions("test", auction["num_served"], auction["batch_size"])
    found = served(mechanism_of(run), batches, auction_align.truth_of(run), auction["rule"])
    write_results(folder, {"served": {name: found}})


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with dotted fields set."""
    settings = ConfigDict(config)
    settings.update_from_flattened_dict(changes)
    return settings.to_dict()


def folders_of(seed: int, name: str) -> tuple[str, str]:
    """The workdir and the system folder of a run.

    A system that is pre-trained otherwise has a workdir of its own; one that differs from another
    in the payment rule alone is scored with it, under `OTHER-RULE`.
    """
    own = {field for field in SYSTEMS[name] if field.split(".")[0] not in command.AUCTION}
    workdir = f"seed-{seed}-{name}" if own else f"seed-{seed}"
    without_rule = lambda fields: {k: v for k, v in fields.items() if k != "auction.rule"}
    wanted = without_rule(SYSTEMS[name])
    return workdir, next(name for name in SYSTEMS if without_rule(SYSTEMS[name]) == wanted)


def known(workdir: Path, seed: int, name: str) -> dict[str, dict[str, float]]:
    """Scorer -> metric -> value of a finished run; empty while it is not."""
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


def summary(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of the mean over seeds; without a second seed the interval is NaN."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return mean, float(mean - reach), float(mean + reach)


def rows_of(scores: Mapping[tuple[int, str], Mapping], names: tuple[str, ...]) -> list[dict]:
    """One row per system, scorer and metric of the runs that are finished."""
    rows = []
    for name in names:
        for scorer in SCORERS:
            found = [
                by[scorer] for (_, other), by in scores.items() if other == name and scorer in by
            ]
            for metric in METRICS if found else ():
                mean, low, high = summary([figures[metric] for figures in found])
                ends = {"mean": mean, "low": low, "high": high, "seeds": len(found)}
                rows.append({"system": name, "scorer": scorer, "metric": metric} | ends)
    return rows


def write_tables(scores: Mapping[tuple[int, str], Mapping], folder: Path) -> None:
    """Writes both tables, as CSV and as Markdown, and the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    text = []
    for table, names in TABLES.items():
        rows = rows_of(scores, names)
        with (folder / f"{table}.csv").open("w", newline="") as file:
            columns = ("system", "scorer", "metric", "mean", "low", "high", "seeds")
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        text.append(f"### {table}\n\n{markdown(rows)}")
    (folder / "tables.md").write_text("\n".join(text))
    draw(rows_of(scores, tuple(SYSTEMS)), folder / "tables.png")


def markdown(rows: list[dict]) -> str:
    """A line per system and scorer: mean, half the interval, and the lift over the first system."""
    cells = {(row["system"], row["scorer"], row["metric"]): row for row in rows}
    lines = ["| system | scorer | seeds | " + " | ".join(METRICS) + " |"]
    lines.append("|---" * (3 + len(METRICS)) + "|")
    first = rows[0]["system"] if rows else ""
    for system, scorer in dict.fromkeys((row["system"], row["scorer"]) for row in rows):
        shown = []
        for metric in METRICS:
            cell = cells[system, scorer, metric]
            reach = (cell["high"] - cell["low"]) / 2
            lift = cell["mean"] / cells[first, scorer, metric]["mean"] - 1
            text = f"{cell['mean']:.4g}" + (f" ± {reach:.2g}" if np.isfinite(reach) else "")
            shown.append(text + (f" ({lift:+.1%})" if metric in SERVED and system != first else ""))
        seeds = cells[system, scorer, METRICS[0]]["seeds"]
        lines.append(f"| {system} | {scorer} | {seeds} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """Draws every metric by system, scorers side by side, with the intervals."""
    figure = Figure(figsize=(3.2 * len(METRICS), 3.4), layout="constrained")
    names = list(dict.fromkeys(row["system"] for row in rows))
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        for number, scorer in enumerate(SCORERS):
            own = [row for row in rows if (row["scorer"], row["metric"]) == (scorer, metric)]
            place = [names.index(row["system"]) + 0.4 * number - 0.2 for row in own]
            mean = np.array([row["mean"] for row in own])
            reach = np.nan_to_num(np.array([row["high"] for row in own]) - mean)
            axes.bar(place, mean, 0.4, yerr=reach, label=scorer, capsize=2)
        axes.set(title=metric, xticks=range(len(names)))
        axes.set_xticklabels(names, rotation=60)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=120)


def print_grid(scores: Mapping[tuple[int, str], Mapping], running: tuple[int, str]) -> None:
    """Prints which runs are finished: one line per system, one column per seed."""
    seeds, names = dict.fromkeys(s for s, _ in scores), dict.fromkeys(n for _, n in scores)
    grid = Table("system", *(f"seed {seed}" for seed in seeds), title_justify="left")
    for name in names:
        waiting = lambda seed, name=name: "running" if (seed, name) == running else "-"
        grid.add_row(name, *("done" if scores[s, name] else waiting(s) for s in seeds))
    Console(width=100).print(grid)


if __name__ == "__main__":
    command.run(main, __doc__)
