"""Comparing systems over markets: tables with intervals, and figures (sec. 5).

A run is one system on one market. Tables merge the records of any number of runs.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ega_jax.evaluation.claims import COLUMNS as CLAIM_COLUMNS
from ega_jax.evaluation.claims import claim_rows, claims_markdown
from ega_jax.evaluation.lifts import lift_text, student_interval
from ega_jax.evaluation.records import (
    COSTS,
    JUDGED,
    LIFTS,
    ON_FRONTIER,
    OTHERS,
    OWN,
    PRICED,
    SCORERS,
    VALUED,
    Record,
)
from ega_jax.evaluation.report import save_figure
from ega_jax.training.files import replacing

METRICS = ("value", "rpm", *VALUED[1:], "surplus", *JUDGED, *COSTS, *LIFTS)
COLUMNS = ("system", "scorer", "metric", "mean", "low", "high", "markets", "sessions")
FRONTIER_COLUMNS = ("system", "lever", "setting", "market", *ON_FRONTIER)
Ceilings = Mapping[int, Mapping[str, float]]  # Market -> ceiling -> value per 1000 items.

_STYLES: dict[str, dict[str, Any]] = {  # Of each curve.
    OWN[0]: {"marker": "*", "linestyle": "", "markersize": 12},
    "alpha": {"marker": "o", "linestyle": "-"},
    "beta": {"marker": "s", "linestyle": "--"},
    "kappa": {"marker": "^", "linestyle": ":"},
}
FRONTIER_CEILINGS = {"attainable": "-", "visible": "--"}  # See baselines.decomposition.


def rows_of(records: Iterable[Record], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one row per system, scorer and metric, over the markets of finished runs.

    Ends are those of Student's interval over markets; with one market, a lift has the interval of
    its sessions, and a level has none. `sessions` are the fewest of any market.
    """
    finished = [record for record in records if "failed" not in record]
    rows = []
    for name in names:
        of_system = [record for record in finished if record["system"] == name]
        for scorer in SCORERS:
            scored = [record for record in of_system if scorer in record["means"]]
            rows += [row for metric in METRICS if (row := _row(scored, name, scorer, metric))]
    return rows


def _row(records: list[Record], name: str, scorer: str, metric: str) -> dict[str, Any] | None:
    """One row; its mean is NaN if the metric is undefined in any of the markets."""
    kind = "lifts" if metric in LIFTS else "means"
    known = [record for record in records if metric in record[kind][scorer]]
    if not known:
        return None
    part = _part(metric)
    values = [_number(record[kind][scorer][metric], np.nan) for record in known]
    low, high = student_interval(values)
    if metric in LIFTS and len(known) == 1 and np.isfinite(values[0]):
        low, high = (_number(end, -np.inf) for end in known[0]["intervals"][scorer][metric])
    return {
        "system": name,
        "scorer": scorer,
        "metric": metric,
        "mean": float(np.mean(values)),
        "low": low,
        "high": high,
        "markets": len(known),
        "sessions": min(record["sessions"][part] for record in known) if part else "",
    }


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _part(metric: str) -> str:
    """The measurement that a metric is of."""
    if metric in JUDGED:
        return "psi"
    if metric in PRICED or metric.startswith("rpm"):
        return "rpm"
    return "" if metric in COSTS else "value"


def frontier_rows(records: Iterable[Record], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one row per point of each system's frontiers, by the truth if it is known."""
    return [
        {
            "system": record["system"],
            "lever": point["lever"],
            "setting": point["setting"],
            "market": record["market"],
        }
        | point.get("truth", point["model"])
        for record in records
        if "failed" not in record and record["system"] in names
        for point in record["frontier"]
    ]


def write_tables(
    records: Sequence[Record],
    tables: Mapping[str, Sequence[str]],
    folder: Path,
    ceilings: Ceilings,
) -> None:
    """Writes the tables of all runs as CSV and as Markdown, and figures.

    Args:
      records: of the runs.
      tables: table name -> names of its systems.
      folder: gets TABLE.csv, `claims.csv`, `frontier.csv`, `tables.md`, `lifts.png` and
        `frontier.png`.
      ceilings: of the markets where they are known, for `frontier.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = []
    for table, names in tables.items():
        rows = rows_of(records, names)
        write_csv(folder / f"{table}.csv", COLUMNS, rows)
        text.append(f"### {table}\n\n{markdown(rows)}")
    claims = claim_rows(records)
    write_csv(folder / "claims.csv", CLAIM_COLUMNS, claims)
    text += [f"### Claims of the paper\n\n{claims_markdown(claims)}"] if claims else []
    every = list(dict.fromkeys(name for names in tables.values() for name in names))
    points = frontier_rows(records, every)
    write_csv(folder / "frontier.csv", FRONTIER_COLUMNS, points)
    failed = [
        f"- {r['system']}, market {r['market']}: {r['failed']}" for r in records if "failed" in r
    ]
    text += ["### Failed runs\n\n" + "\n".join(failed) + "\n"] if failed else []
    with replacing(folder / "tables.md") as written:
        written.write_text("\n".join(text))
    draw_lifts(rows_of(records, every), folder / "lifts.png")
    draw_frontier(points, folder / "frontier.png", ceilings)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows (dictionaries by column) as CSV, with a header line."""
    with replacing(path) as written, written.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns two tables, one line per system and scorer: levels, and lifts with intervals."""
    cells = {(row["system"], row["scorer"], row["metric"]): row for row in rows}
    keys = list(dict.fromkeys((row["system"], row["scorer"]) for row in rows))
    levels = [metric for metric in METRICS if metric not in LIFTS]
    level = lambda row: f"{row['mean']:.4g}"
    return "\n".join(
        [
            _grid(cells, keys, levels, level),
            "Paired lifts in per cent, with 95 % intervals: of resampled sessions for one market, "
            "Student's over several.\n",
            _grid(cells, keys, LIFTS, lift_text),
        ]
    )


def _grid(cells, keys, metrics: Sequence[str], form) -> str:
    lines = ["| system | scorer | markets | " + " | ".join(metrics) + " |"]
    lines.append("|---" * (3 + len(metrics)) + "|")
    for system, scorer in keys:
        found = [cells.get((system, scorer, metric)) for metric in metrics]
        markets = max((row["markets"] for row in found if row), default=0)
        shown = [form(row) if row else "" for row in found]
        if markets:
            lines.append(f"| {system} | {scorer} | {markets} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def draw_lifts(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws each lift of each system by each scorer, with its interval."""
    figure = Figure(figsize=(3.4 * len(OTHERS) * 1.6, 9), layout="constrained")
    names = list(dict.fromkeys(row["system"] for row in rows))
    panels = figure.subplots(len(LIFTS) // len(OTHERS), len(OTHERS), squeeze=False)
    for axes, metric in zip(panels.flat, LIFTS, strict=True):
        for number, scorer in enumerate(SCORERS):
            own = [row for row in rows if (row["scorer"], row["metric"]) == (scorer, metric)]
            place = [names.index(row["system"]) + 0.3 * number - 0.15 for row in own]
            mean = np.array([row["mean"] for row in own])
            ends = np.array([(row["low"], row["high"]) for row in own]).reshape(-1, 2).T
            reach = np.clip(np.nan_to_num(np.abs(ends - mean)), 0, 100)
            axes.errorbar(mean, place, xerr=reach, fmt="o", capsize=2, label=scorer)
        axes.axvline(0, color="0.6", lw=1)
        axes.set(title=f"{metric}, %", yticks=range(len(names)))
        axes.set_yticklabels(names)
        axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    save_figure(figure, path)


def draw_frontier(points: Sequence[Mapping[str, Any]], path: Path, ceilings: Ceilings) -> None:
    """Draws value against CTR-poi along each lever below the ceilings, one panel per market.

    Systems that serve the same slates on a market are drawn once.
    """
    markets = sorted({point["market"] for point in points})
    if not markets:
        return
    figure = Figure(figsize=(5 * len(markets) + 1.5, 4), layout="constrained")
    names = list(dict.fromkeys(point["system"] for point in points))
    panels = figure.subplots(1, len(markets), squeeze=False)[0]
    legend = {lever: Line2D([], [], **_STYLES[lever], color="0.4") for lever in _STYLES}
    for axes, market in zip(panels, markets, strict=True):
        drawn = set()
        for system, lever in dict.fromkeys((p["system"], p["lever"]) for p in points):
            own = tuple(
                (p["ctr_poi"], p["value"])
                for p in points
                if (p["system"], p["lever"], p["market"]) == (system, lever, market)
            )
            if own and own not in drawn:
                colour = f"C{names.index(system) % 10}"
                axes.plot(*zip(*own, strict=True), **_STYLES[lever], color=colour)
                legend[system] = Line2D([], [], color=colour, linewidth=4)
                drawn.add(own)
        for name, value in ceilings.get(market, {}).items():
            style = {"color": "0.4", "linestyle": FRONTIER_CEILINGS[name]}
            line = axes.axhline(value, label=f"ceiling, {name}", **style)
            legend[line.get_label()] = line
        axes.set(xlabel="CTR-poi", ylabel="value per 1000 impressions", title=f"market {market}")
    figure.legend(legend.values(), legend.keys(), loc="outside right upper")
    save_figure(figure, path)
