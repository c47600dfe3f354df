"""Comparing systems over training seeds: means with intervals, tables, a figure (sec. 5)."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ega_jax.evaluation.report import save_figure
from ega_jax.training.files import replacing

SERVED = ("rpm", "bid_rpm", "ctr_poi", "ctr_img")  # See `serving.served`,
REPORTED = ("psi", "psi_10")  # and `auction.systems`.
METRICS = (*SERVED, *REPORTED)
SCORERS = ("model", "truth")
# (seed, system) -> scorer -> metric -> value; empty if a run is not finished.
Scores = Mapping[tuple[int, str], Mapping[str, Mapping[str, float]]]


def summary(values: list[float]) -> tuple[float, float, float]:
    """Returns the mean and its 95 % Student interval over seeds; with one seed the ends are NaN.

    The interval covers the variation between training seeds only, not the sampling of sessions.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return mean, float(mean - reach), float(mean + reach)


def rows_of(scores: Scores, names: tuple[str, ...]) -> list[dict]:
    """Returns one row per system, scorer and metric, over the finished runs."""
    rows = []
    for name in names:
        for scorer in SCORERS:
            found = by_seed(scores, name, scorer)
            for metric in METRICS if found else ():
                mean, low, high = summary([figures[metric] for figures in found.values()])
                ends = {"mean": mean, "low": low, "high": high, "seeds": len(found)}
                rows.append({"system": name, "scorer": scorer, "metric": metric} | ends)
    return rows


def by_seed(scores: Scores, name: str, scorer: str) -> dict[int, Mapping[str, float]]:
    """Returns seed -> metric -> value of a system's finished runs."""
    return {
        seed: by[scorer] for (seed, other), by in scores.items() if other == name and scorer in by
    }


def lifts(scores: Scores, name: str, first: str, scorer: str, metric: str) -> list[float]:
    """Returns a system's relative lifts of a metric over the system `first`, one per shared seed.

    Seeds in which the value of `first` is 0 are left out.
    """
    own, others = by_seed(scores, name, scorer), by_seed(scores, first, scorer)
    shared = [seed for seed in own if seed in others and others[seed][metric]]
    return [own[seed][metric] / others[seed][metric] - 1 for seed in shared]


def write_tables(scores: Scores, tables: Mapping[str, tuple[str, ...]], folder: Path) -> None:
    """Writes tables as CSV and as Markdown, and a figure of all their systems.

    Args:
      scores: the metrics of the runs.
      tables: table name -> names of its systems; lifts are over the first system.
      folder: the output folder. It gets TABLE.csv, `tables.md`, `tables.png`, and `runs.csv` with
        the values of every run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        {"system": name, "seed": seed, "scorer": scorer, "metric": metric, "value": value}
        for (seed, name), by in scores.items()
        for scorer, figures in by.items()
        for metric, value in figures.items()
    ]
    write_csv(folder / "runs.csv", ("system", "seed", "scorer", "metric", "value"), runs)
    text = []
    for table, names in tables.items():
        rows = rows_of(scores, names)
        columns = ("system", "scorer", "metric", "mean", "low", "high", "seeds")
        write_csv(folder / f"{table}.csv", columns, rows)
        text.append(f"### {table}\n\n{markdown(rows, scores, first=names[0])}")
    with replacing(folder / "tables.md") as written:
        written.write_text("\n".join(text))
    every = tuple(dict.fromkeys(name for names in tables.values() for name in names))
    draw(rows_of(scores, every), folder / "tables.png")


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Writes rows (dictionaries by column) as CSV, with a header line."""
    with replacing(path) as written, written.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: list[dict], scores: Scores, first: str) -> str:
    """Returns a table, one line per system and scorer: means and lifts over the system `first`.

    `±` is half the 95 % interval. Systems of the same seed share data, tokens and models where they
    can, so lifts are paired by seed.
    """
    cells = {(row["system"], row["scorer"], row["metric"]): row for row in rows}
    lines = ["| system | scorer | seeds | " + " | ".join(METRICS) + " |"]
    lines.append("|---" * (3 + len(METRICS)) + "|")
    for system, scorer in dict.fromkeys((row["system"], row["scorer"]) for row in rows):
        shown = []
        for metric in METRICS:
            cell = cells[system, scorer, metric]
            text = f"{cell['mean']:.4g}" + _reach(cell["low"], cell["high"], ".2g")
            lifted = metric in SERVED and system != first
            if lifted and (found := lifts(scores, system, first, scorer, metric)):
                mean, low, high = summary(found)
                text += f" ({mean:+.1%}{_reach(low, high, '.1%')})"
            shown.append(text)
        seeds = cells[system, scorer, METRICS[0]]["seeds"]
        lines.append(f"| {system} | {scorer} | {seeds} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _reach(low: float, high: float, form: str) -> str:
    """Returns half an interval as text, or "" if there is none."""
    return f" ± {(high - low) / 2:{form}}" if np.isfinite(high) else ""


def draw(rows: list[dict], path: Path) -> None:
    """Draws a bar chart per metric: one bar per system and scorer, with the intervals."""
    figure = Figure(figsize=(3.6 * len(METRICS) // 2, 6.4), layout="constrained")
    names = list(dict.fromkeys(row["system"] for row in rows))
    for axes, metric in zip(figure.subplots(2, len(METRICS) // 2).flat, METRICS, strict=True):
        for number, scorer in enumerate(SCORERS):
            own = [row for row in rows if (row["scorer"], row["metric"]) == (scorer, metric)]
            place = [names.index(row["system"]) + 0.4 * number - 0.2 for row in own]
            mean = np.array([row["mean"] for row in own])
            reach = np.nan_to_num(np.array([row["high"] for row in own]) - mean)
            axes.bar(place, mean, 0.4, yerr=reach, label=scorer, capsize=2)
        axes.set(title=metric, xticks=range(len(names)))
        if metric in REPORTED and any(r["mean"] > 0 for r in rows if r["metric"] == metric):
            axes.set_yscale("log")  # Psi differs by orders of magnitude.
        axes.set_xticklabels(names, rotation=60)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    save_figure(figure, path)
