"""Reports statistics of a simulated ad log: a table, figures and `calibration.json`.

    python -m experiments.calibrate --data=DIR [--ipinyou=CSV] --out=DIR

With `--ipinyou`, the spread of real prices is reported too.
"""

import json
import pathlib
from typing import Any

import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ega_jax.data.market.calibration import calibrate, log_sd, real_prices
from experiments.common import command

_DATA = flags.DEFINE_string("data", None, "Folder of a simulated ad log.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the report.", required=True)
_IPINYOU = flags.DEFINE_string("ipinyou", None, "CSV of real prices: campaign,price,impressions.")
_SESSIONS = flags.DEFINE_integer("sessions", 20_000, "Number of sessions to read.", lower_bound=1)


def main() -> None:
    """Runs the command."""
    report = calibrate(_DATA.value, _SESSIONS.value)
    prices = real_prices(_IPINYOU.value) if _IPINYOU.value else {}
    report |= {f"real.{name}.log_sd": log_sd(*prices[name]) for name in sorted(prices)}
    out = pathlib.Path(_OUT.value).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    (out / "calibration.json").write_text(json.dumps(report, indent=2) + "\n")
    figures = {"rates": _rates, "slate": _slate, "bids": lambda a, r: _bids(a, r, prices)}
    for name, draw in figures.items():
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.subplots()
        draw(axes, report)
        axes.legend()
        figure.savefig(out / f"{name}.png", dpi=120)
    print(_table(report))


def _table(report: dict[str, Any]) -> str:
    """Formats one statistic per line; lists of more than 20 entries are in the JSON file only."""
    lines = []
    for name, value in report.items():
        values = value if isinstance(value, list) else [value]
        if len(values) <= 20:
            lines.append(f"{name:32s} {'  '.join(f'{v:.4g}' for v in values)}")
    return "\n".join(lines)


def _rates(axes: Axes, report: dict[str, Any]) -> None:
    for name, label in (("click_poi", "click of the POI"), ("click_image", "click of the image")):
        slots = 1 + np.arange(len(report[f"{name}.rate_by_slot"]))
        axes.plot(slots, report[f"{name}.true_rate_by_slot"], label=f"{label}, truth")
        axes.plot(slots, report[f"{name}.rate_by_slot"], "o", label=f"{label}, log")
    axes.set(xlabel="slot", ylabel="rate", ylim=(0, None))


def _slate(axes: Axes, report: dict[str, Any]) -> None:
    for name in ("similar", "random", "random_ads"):
        rates = report[f"slate.rate_below_{name}"]
        axes.plot(range(len(rates)), rates, "o-", label=f"below {name.replace('_', ' ')}")
    axes.set(xlabel="items just above", ylabel="true click rate of the same item", ylim=(0, None))


def _bids(
    axes: Axes, report: dict[str, Any], prices: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Draws the cumulative distributions of log bids and real log prices, minus their medians."""
    for i, (price, count) in enumerate(prices.values()):
        order = np.argsort(price)
        share = np.cumsum(count[order]) / count.sum()
        centred = np.log(price[order] / price[order][np.searchsorted(share, 0.5)])
        axes.plot(centred, share, color="0.7", lw=1, label="" if i else "real campaigns")
    quantiles = np.array(report["bid.log_quantiles"])
    shares = np.linspace(0.01, 0.99, len(quantiles))
    axes.plot(quantiles - np.log(report["bid.median"]), shares, "k", lw=2, label="market")
    axes.set(xlabel="log of the price, less its median", ylabel="share at most", xlim=(-3, 3))


if __name__ == "__main__":
    command.run(main, __doc__)
