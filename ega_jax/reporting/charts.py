"""Figures as inline SVG: one panel each, small enough for a phone, without any reference."""

import io
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ega_jax.reporting.blocks import Chart

COLOURS = ("#0b6e99", "#4d4d4d", "#9a9a9a", "#6fa8c0", "#1f2d35", "#c4c4c4")  # The accent first.
DASHES = ("-", "--", ":", "-.")
SIZE = 4.2, 2.7  # Inches.
STYLE = {
    "svg.fonttype": "none",  # Text stays text, in the page's own font.
    "svg.hashsalt": "ega_jax",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def chart(title: str, draw: Callable[[Axes], None]) -> Chart:
    """Draws one figure.

    Args:
      title: what it shows; stands above it.
      draw: draws on the axes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return Chart(title, svg(figure))


def svg(figure: Figure) -> str:
    """Returns a figure as an SVG element that refers to nothing outside of the page."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=nothing)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)  # HTML needs no names of languages.
    return re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2).strip()


def lines(
    title: str,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str = "",
) -> Chart:
    """A chart of curves `(x, y)` by label; a single curve has no legend."""

    def draw(axes: Axes) -> None:
        for number, (label, (x, y)) in enumerate(curves.items()):
            style = DASHES[number // len(COLOURS) % len(DASHES)]
            shown = label if len(curves) > 1 else None
            axes.plot(x, y, style, label=shown)
        axes.set(xlabel=xlabel, ylabel=ylabel)

    return chart(title, draw)


def by_slot(
    title: str, curves: Mapping[str, Sequence[float]], ylabel: str, *, in_logs: bool = False
) -> Chart:
    """A chart of values of slots, numbered from 1; NaN leaves a gap."""

    def draw(axes: Axes) -> None:
        for label, values in curves.items():
            slots = 1 + np.arange(len(values))
            axes.plot(slots, values, "o-", label=label if len(curves) > 1 else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="slot", ylabel=ylabel)
        if in_logs:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)

    return chart(title, draw)
