"""Varies one setting of a trained auction at a time and measures revenue and clicks (fig. 5).

Serves test sessions with other values of alpha, beta and, with `--beams`, other numbers of beams;
these need no training. Each other number of slots (K), code layers (C) or codes per layer (W) needs
a system of its own, whose slates are trained in a workdir below sweep/; other slots also need a
market of their own. Scores use the reward model and, on the simulated market, the true click
probabilities.

    python -m experiments.sweep --workdir=runs/market-tiny
    python -m experiments.sweep --workdir=runs/market-tiny --rule=gsp --betas=0,2,8
    python -m experiments.sweep --workdir=runs/market-tiny --rule=gsp --alphas= --betas= \\
        --beams=4,16,64 --slots=4,6 --layers=2,3 --codes=32,64

Writes the figure sweep-RULE.png and its points, sweep-RULE.csv, to systems/SYSTEM/figures, and adds
the numbers to results.json. A point that is already there is not served again.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from absl import flags
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ega_jax.auction.ega import EGA
from ega_jax.baselines.settings import whole
from ega_jax.errors import UserError
from ega_jax.evaluation.comparison import write_csv
from ega_jax.evaluation.report import read_results, save_figure, write_results
from ega_jax.evaluation.serving import judges_of, served
from ega_jax.phases.auction import AuctionTraining
from ega_jax.systems import UNPRICED
from experiments.common import command, workdirs
from experiments.common.measuring import weighs_tokens
from experiments.common.runs import (
    changed,
    find_system,
    open_system,
    pretrained,
    truth_of,
)

command.define_system()
flags.adopt_module_key_flags(command)
FIGURES = ("rpm", "value", "ctr_poi", "ad_share")
FIELDS = {  # Setting -> its field of the config.
    "alpha": "allocation.alpha",
    "beta": "allocation.beta",
    "beams": "allocation.num_beams",
    "slots": "data.market.num_slots",
    "layers": "tokenizer.num_layers",
    "codes": "tokenizer.num_codes",
}
LEVERS = ("alpha", "beta")  # Settings that need no compilation.
TRAINED = ("slots", "layers", "codes")  # Settings that need training.
_ALPHAS = flags.DEFINE_list("alphas", ["0.6", "1.2", "2.4", "3.6", "5", "8"], "Values of alpha.")
_BETAS = flags.DEFINE_list("betas", ["0", "1", "2", "8", "32"], "Values of beta.")
_BEAMS = flags.DEFINE_list("beams", [], "Numbers of beams; each needs a compilation.")
_SLOTS = flags.DEFINE_list("slots", [], "Numbers of slots; each needs training.")
_LAYERS = flags.DEFINE_list("layers", [], "Numbers of code layers; each needs training.")
_CODES = flags.DEFINE_list("codes", [], "Numbers of codes per layer; each needs training.")
_RULE = flags.DEFINE_string("rule", None, "Payment rule; default: the system's.")
_SESSIONS = flags.DEFINE_integer(
    "num_sessions", 512, "About how many test sessions to serve; whole batches.", 1
)


def main() -> None:
    """Runs the command."""
    _, workdir = workdirs.find_workdir()
    run = find_system(workdir, command.named_system())
    rule = _RULE.value or run.settings.auction.rule
    flag_of = {"alpha": _ALPHAS, "beta": _BETAS, "beams": _BEAMS}
    flag_of |= {"slots": _SLOTS, "layers": _LAYERS, "codes": _CODES}
    asked = [(name, value) for name, flag in flag_of.items() for value in flag.value]
    check_points(run, asked, rule)
    asked = [(name, f"{float(value):g}") for name, value in asked]  # 1.20 is 1.2.
    place = run.name, f"{rule}, {_SESSIONS.value} sessions"
    known = known_points(workdir, *place)
    for setting, value in asked:
        if value not in known.get(setting, {}):
            print(f"{setting} {value}", flush=True)
            serving = retrained(run, setting, int(value)) if setting in TRAINED else run
            found = serve(serving, setting, value, rule)
            write_results(workdir, {"sweep": {place[0]: {place[1]: {setting: {value: found}}}}})
    known = known_points(workdir, *place)
    if not known:
        raise UserError("no point is asked for: give values, e.g. --alphas=1.2,2.4")
    print_points(known, ", ".join(place))
    path = run.folder / "figures" / f"sweep-{rule}.png"
    draw_points(known, path)
    write_csv(path.with_suffix(".csv"), ("setting", "at", "judge", *FIGURES), rows_of(known))
    print(f"{path.name} and {path.stem}.csv are in {path.parent}")


def check_points(run: AuctionTraining, asked: list[tuple[str, str]], rule: str) -> None:
    """Refuses points that cannot be served, before serving any point.

    Raises:
      UserError: names the setting.
    """
    name, settings = run.name, {setting for setting, _ in asked}
    if "beams" in settings and not isinstance(run.system, EGA):
        raise UserError(f"--beams: {name} has no beam search")
    if settings & set(LEVERS) and not weighs_tokens(run):
        raise UserError(f"{name} does not use token bids: give --alphas= --betas=")
    unpriced = run.pricing_config.rules_without_network
    if rule not in unpriced and settings & set(TRAINED):
        raise UserError(
            f"payment networks are not trained again for other {', '.join(TRAINED)}: "
            f"give --rule={unpriced[1]} or another of {', '.join(unpriced)}"
        )
    if "slots" in settings and run.settings.data.path:
        raise UserError("slates of other lengths take the embedded market: no log has them")
    for setting, value in asked:
        kind, words = (float, "a number") if setting in LEVERS else (int, "a whole number")
        try:
            number = kind(value)
        except ValueError as error:
            raise UserError(f"{setting}: {value!r} is not {words}") from error
        changed(whole(run.settings), {FIELDS[setting]: number})


def serve(run: AuctionTraining, setting: str, value: str, rule: str) -> dict[str, Any]:
    """Serves test sessions, with the setting changed unless it needed training; see `served`."""
    mechanism, system = run.mechanism, run.system
    if setting == "beams" and isinstance(system, EGA):
        config = dataclasses.replace(system.config, num_beams=int(value))
        system = dataclasses.replace(system, config=config)
        mechanism = dataclasses.replace(mechanism, system=system)
    levers = {setting: float(value)} if setting in LEVERS else {}
    batches = run.sessions("test", _SESSIONS.value, run.settings.auction.batch_size)
    return served(mechanism, batches, judges_of(truth_of(run)), rule, **levers)


def retrained(run: AuctionTraining, setting: str, value: int) -> AuctionTraining:
    """Pre-trains with another size in a workdir of its own; returns the training of the system."""
    jax.clear_caches()  # The number of compiled functions in a process is limited.
    workdir = run.pretraining.workdir / "sweep" / f"{setting}-{value}"
    own = {
        FIELDS[setting]: value,
        "data.path": "" if setting == "slots" else str(run.pretraining.folder),
    }
    settings = changed(whole(run.settings), UNPRICED | own)
    return open_system(pretrained(settings, workdir), workdir / "systems" / run.name)


def known_points(workdir: Path, *place: str) -> dict[str, dict[str, Any]]:
    """Returns setting -> value -> judge -> metrics of the points in `results.json`."""
    found = read_results(workdir).get("sweep", {})
    for name in place:
        found = found.get(name, {})
    return found


def print_points(points: dict[str, dict[str, Any]], title: str) -> None:
    """Prints one line per point and judge."""
    table = Table("setting", "at", "judge", *FIGURES, title=title, title_justify="left")
    for row in rows_of(points):
        figures = (f"{row[name]:.4g}" for name in FIGURES)
        table.add_row(row["setting"], row["at"], row["judge"], *figures)
    Console(width=100).print(table)


def rows_of(points: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per point and judge."""
    return [
        {"setting": setting, "at": value, "judge": judge}
        | {name: figures[name] for name in FIGURES}
        for setting, values in points.items()
        for value in sorted(values, key=float)
        for judge, figures in values[value].items()
    ]


def draw_points(points: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws revenue and click rate over each setting, by each judge."""
    figure = Figure(figsize=(4.5 * len(points), 3.4), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    handles: list[Artist] = []
    for axes, (setting, values) in zip(panels, points.items(), strict=True):
        other = axes.twinx()
        ordered = sorted(values, key=float)
        places = [float(value) for value in ordered]
        of = lambda judge, name, v=values, o=ordered: [v[value][judge][name] for value in o]
        for judge, style in (("model", "--"), ("truth", "-")):
            if judge in values[ordered[0]]:
                axes.plot(places, of(judge, "rpm"), f"C0o{style}", label=f"RPM, {judge}")
                other.plot(places, of(judge, "ctr_poi"), f"C1s{style}", label=f"CTR-poi, {judge}")
        handles = [*axes.lines, *other.lines]
        axes.set(xlabel=setting, ylabel="RPM")
        axes.set_xscale("symlog", base=2)  # Values are often multiples and may include 0.
        axes.set_xticks(places, ordered)
        other.set(ylabel="CTR-poi")
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    save_figure(figure, path)


if __name__ == "__main__":
    command.run(main, __doc__)
