"""Calibrates a simulated market: what its log looks like, and what can be learned from it.

    python -m experiments.calibrate --config=experiments/configs/market.py:small --workdir=DIR \\
        --out=DIR [--ipinyou=CSV] [--parts=log,ips]

makes the market's log in the workdir, unless it is there, and writes a table, figures and
`calibration.json`. `--parts` chooses from

- `log`: click rates by slot, share of ads, spread of bids (with `--ipinyou` beside that of real
  prices), effects of the slate;
- `reward`: predicted over true clicks of the reward model on uniformly drawn slates, with and
  without weighting by propensity, and its log-loss beside the truth's; trains the models if needed;
- `recall`: the value that a linear recall of part of a book keeps, and what history and context
  tell of the true utility;
- `ips`: in how many of 20 markets of size `tiny` the estimate of the uniform policy's click rate
  from the log alone covers the truth;
- `large`: the log-loss of a reward model of a million parameters, trained on two million fresh
  sessions (20 minutes on two cores for `small`);
- `served`: of each system that was trained in the workdir, predicted over true clicks on the slates
  that it serves, and how much of the log tells of them.

Parts add up: those that are not chosen keep what an earlier run wrote into `--out`.
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ega_jax.baselines.settings import Settings
from ega_jax.data.market.calibration import calibrate, log_sd, real_prices
from ega_jax.data.market.config import SIZES
from ega_jax.errors import UserError
from ega_jax.evaluation.report import flatten
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.pretraining import Pretraining
from ega_jax.systems import training_of
from ega_jax.training.files import read_json, write_json
from ega_jax.training.mesh import data_mesh
from experiments.calibrations.observables import observables
from experiments.calibrations.propensities import covered
from experiments.calibrations.reward_models import large_reward_model, reward_models
from experiments.calibrations.served_slates import served_slates
from experiments.common import command, workdirs
from experiments.common.runs import find_system, trained_systems

command.define_config()
flags.adopt_module_key_flags(command)
DEFAULT = ("log", "reward", "recall", "ips")
PARTS = (*DEFAULT, "large", "served")
_PARTS = flags.DEFINE_list("parts", list(DEFAULT), f"What to measure, of {', '.join(PARTS)}.")
_OUT = flags.DEFINE_string("out", None, "Folder for the report.", required=True)
_IPINYOU = flags.DEFINE_string("ipinyou", None, "CSV of real prices: campaign,price,impressions.")
_SESSIONS = flags.DEFINE_integer("sessions", 20_000, "Sessions that `log` reads.", lower_bound=1)
_MARKETS = flags.DEFINE_integer("ips_markets", 20, "Number of markets of `ips`.", lower_bound=1)


def main() -> None:
    """Runs the command."""
    command.check_named("part", _PARTS.value, PARTS)
    settings, workdir = workdirs.open_workdir(Settings)
    run = training_of(Pretraining(settings, workdir, data_mesh()), workdir / "systems" / "ega")
    _ = run.dataset  # Makes the market's log, if it is not there.
    out = pathlib.Path(_OUT.value).expanduser()
    report: dict[str, Any] = {}
    prices = real_prices(_IPINYOU.value) if _IPINYOU.value else {}
    if "log" in _PARTS.value:
        report |= calibrate(run.pretraining.folder, _SESSIONS.value)
        report |= {f"real.{name}.log_sd": log_sd(*prices[name]) for name in sorted(prices)}
    if "ips" in _PARTS.value:
        report |= {
            "ips_covered": covered(SIZES["tiny"], range(_MARKETS.value)),
            "ips_markets": _MARKETS.value,
        }
    if "recall" in _PARTS.value:
        report |= observables(run)
    if "reward" in _PARTS.value:
        report |= reward_models(run)
    if "large" in _PARTS.value:
        report |= large_reward_model(run)
    if "served" in _PARTS.value:
        report |= served_slates(_trained_systems(workdir))
    path = out / "calibration.json"
    report = (read_json(path) if path.exists() else {}) | report
    write_json(path, report)
    if "log" in _PARTS.value:
        _draw(report, prices, out)
    print(_table(report))


def _trained_systems(workdir: pathlib.Path) -> dict[str, AuctionTraining]:
    """The systems of a workdir by name.

    Raises:
      UserError: there is none.
    """
    names = trained_systems(workdir)
    if not names:
        raise UserError(
            f"--parts=served: {workdir} holds no trained system; run experiments.auction_align"
        )
    return {name: find_system(workdir, name) for name in names}


def _draw(report: dict[str, Any], prices: dict[str, Any], out: pathlib.Path) -> None:
    """Writes the figures of the log."""
    figures = {"rates": _rates, "slate": _slate, "bids": lambda a, r: _bids(a, r, prices)}
    for name, draw in figures.items():
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.subplots()
        draw(axes, report)
        axes.legend()
        figure.savefig(out / f"calibration_{name}.png", dpi=120)


def _table(report: dict[str, Any]) -> str:
    """Formats one statistic per line; lists of more than 20 entries are in the JSON file only."""
    lines = []
    for name, value in flatten(report):
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
