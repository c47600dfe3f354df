"""The table and the figure of `experiments.funnel`: one row per system and size of the ad book."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ega_jax.errors import UserError
from ega_jax.evaluation.comparison import write_csv
from ega_jax.evaluation.report import save_figure
from ega_jax.training.files import locked

COLUMNS = ("system", "ads", "value", "ctr_poi", "low", "high", "ms")
Row = Mapping[str, Any]


def row_of(system: str, ads: int, **figures: float) -> Row:
    """Returns a row; a figure that is absent or not finite is an empty cell."""
    finite = {name: value for name, value in figures.items() if math.isfinite(value)}
    return dict.fromkeys(COLUMNS, "") | {"system": system, "ads": ads} | finite


def add(folder: Path, row: Row) -> None:
    """Adds a row to funnel.csv and draws funnel.png again."""
    path = folder / "funnel.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        rows = merged(read_rows(path), row)
        write_csv(path, COLUMNS, rows)
        draw(rows, folder / "funnel.png")


def read_rows(path: Path) -> list[Row]:
    """Reads funnel.csv; no rows if it is absent.

    Raises:
      UserError: it has other columns.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path}: the columns are not {','.join(COLUMNS)}; move it away")
        return list(reader)


def merged(known: Iterable[Row], row: Row) -> list[Row]:
    """Returns rows with another one, by system and number of ads.

    It replaces that of the same system and ads, unless only the known one was measured by sessions.
    """
    rows = {(each["system"], int(each["ads"])): each for each in known}
    key = row["system"], int(row["ads"])
    if row["ctr_poi"] != "" or key not in rows or rows[key]["ctr_poi"] == "":
        rows[key] = row
    return [rows[key] for key in sorted(rows)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws value with its interval, and milliseconds, by the number of ads."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    value, ms = figure.subplots(1, 2)
    for number, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
        style = {"color": f"C{number}", "marker": "o", "markersize": 4}
        own = [row for row in rows if row["system"] == system]
        ads, low, high = numbers(own, "ads", "low", "high")
        value.plot(*numbers(own, "ads", "value"), **style)
        value.vlines(ads, low, high, color=style["color"])
        ms.plot(*numbers(own, "ads", "ms"), label=system, **style)
    value.set(xlabel="ads", ylabel="value per 1000 impressions", xscale="log")
    ms.set(xlabel="ads", ylabel="ms per request alone", xscale="log", yscale="log")
    figure.legend(*ms.get_legend_handles_labels(), loc="outside right upper")
    save_figure(figure, path)


def numbers(rows: Iterable[Row], *columns: str) -> np.ndarray:
    """Returns columns of the rows that have them all, `[columns, rows]` float64."""
    full = [[row[name] for name in columns] for row in rows]
    full = [cells for cells in full if "" not in cells]
    return np.array(full, np.float64).reshape(-1, len(columns)).T
