"""Reporting results: `results.json`, tables on the terminal, curves."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ega_jax.training.files import locked, read_json, replacing, write_json
from ega_jax.training.metrics import read_metrics

WIDE = 120  # Least width of a wide table, in characters, whatever the terminal's width.


def write_results(workdir: Path, results: Mapping[str, Any]) -> Path:
    """Merges results into `workdir/results.json`; other keys, nested ones too, are unchanged.

    A value that is not finite is written as `null`, which `read_results` reads as NaN; `None`
    removes a key. Several processes may write the same file.
    """
    path = Path(workdir) / "results.json"
    with locked(path.parent):
        write_json(path, _each(_null, _merged(read_results(workdir), results)))
    return path


def read_results(workdir: Path) -> dict[str, Any]:
    """Reads `workdir/results.json`; `{}` if there is none."""
    path = Path(workdir) / "results.json"
    not_null = lambda value: math.nan if value is None else value
    return _each(not_null, read_json(path)) if path.exists() else {}


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _each(change, inner) for name, inner in value.items()}
    return change(value)


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _merged(kept: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(kept)
    for name, value in added.items():
        inner = kept.get(name)
        before = inner if isinstance(inner, Mapping) else {}
        merged[name] = _merged(before, value) if isinstance(value, Mapping) else value
    return {name: value for name, value in merged.items() if value is not None}


def print_systems(systems: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Prints one line per system and judge: RPM, click rates, ad share and regret (Psi)."""
    columns = ("rpm", "ctr_poi", "ctr_img", "ad_share", "psi", "psi_10", "psi_all")
    table = Table("system", "judge", *columns, "floor", title=title, title_justify="left")
    for name, results in systems.items():
        for judge in ("model", "truth"):
            if judge in results:
                shown = [_shown(results[judge][column]) for column in columns]
                table.add_row(name, judge, *shown, _shown(results["psi_floor"]))
    Console(width=max(Console().width, WIDE)).print(table)


def print_table(results: Mapping[str, Any], title: str) -> None:
    """Prints nested results, one line per value."""
    table = Table("measure", "value", title=title, title_justify="left")
    for name, value in flatten(results):
        table.add_row(name, _shown(value))
    Console(soft_wrap=True).print(table)


def flatten(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `(dotted name, value)` of nested results."""
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plot_curves(workdir: Path, phase: str, names: Sequence[str] = ("loss",)) -> Path:
    """Draws a phase's metrics over time as `workdir/figures/PHASE.png`.

    Args:
      workdir: the folder with the phase's metrics.
      phase: the phase's name.
      names: metrics to draw; those that the phase lacks are skipped. Evaluated recall and
        likelihood are always drawn.

    Returns:
      The figure's path.
    """
    records = read_metrics(Path(workdir) / "metrics" / f"{phase}.jsonl")
    evaluated = [name for name in records[-1] if "/recall" in name or "/nll" in name]
    shown = [*(name for name in names if name in records[-1]), *evaluated]
    figure = Figure(figsize=(4 * len(shown), 3), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, name in zip(axes, shown, strict=True):
        _curve(axis, records, name)
    path = Path(workdir) / "figures" / f"{phase}.png"
    save_figure(figure, path)
    return path


def save_figure(figure: Figure, path: Path) -> None:
    """Saves a figure atomically; makes the folder if it is absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as written:
        figure.savefig(written, dpi=120)


def _curve(axis, records: list[dict[str, float]], name: str) -> None:
    minutes = [record["elapsed_seconds"] / 60 for record in records if name in record]
    axis.plot(minutes, [record[name] for record in records if name in record], marker=".")
    axis.set(xlabel="minutes of training", title=name.removeprefix("eval/"))
    axis.grid(alpha=0.3)
