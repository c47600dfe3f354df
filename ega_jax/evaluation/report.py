"""Results as people read them: `results.json`, a table, curves."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ega_jax.training.metrics import read_metrics


def write_results(workdir: Path, results: Mapping[str, Any]) -> Path:
    """Adds results to `workdir/results.json`; its other keys stay as they are."""
    path = Path(workdir) / "results.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(kept | dict(results), indent=2) + "\n")
    os.replace(temporary, path)
    return path


def print_table(results: Mapping[str, Any], title: str) -> None:
    """Prints nested results, one line per figure."""
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


def plot_curves(workdir: Path, phase: str) -> Path:
    """Draws a phase's loss and its evaluations over time as `workdir/figures/PHASE.png`."""
    records = read_metrics(Path(workdir) / "metrics" / f"{phase}.jsonl")
    evaluated = [record for record in records if any(key.startswith("eval/") for key in record)]
    names = [key for key in evaluated[-1] if key.startswith("eval/")] if evaluated else []
    shown = [name for name in names if "recall" in name or "nll" in name]
    figure = Figure(figsize=(4 * (1 + len(shown)), 3), layout="constrained")
    axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    _curve(axes[0], records, "loss")
    for axis, name in zip(axes[1:], shown, strict=True):
        _curve(axis, evaluated, name)
    path = Path(workdir) / "figures" / f"{phase}.png"
    path.parent.mkdir(exist_ok=True)
    with mpl.rc_context({"savefig.dpi": 120}):
        figure.savefig(path)
    return path


def _curve(axis, records: list[dict[str, float]], name: str) -> None:
    minutes = [record["elapsed_seconds"] / 60 for record in records if name in record]
    axis.plot(minutes, [record[name] for record in records if name in record], marker=".")
    axis.set(xlabel="minutes of training", title=name.removeprefix("eval/"))
    axis.grid(alpha=0.3)
