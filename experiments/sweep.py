"""What alpha and beta do to money and clicks, on a trained auction (paper fig. 5).

Serves test sessions with other values of one lever at a time; nothing is trained or compiled again.
Scored by the reward model and, on the embedded market, by the true click probabilities.

    python -m experiments.sweep --workdir=runs/market-tiny
    python -m experiments.sweep --workdir=runs/market-tiny --rule=gsp --betas=0,2,8

Writes a figure, sweep-RULE.png, into systems/SYSTEM/figures, and adds the numbers to results.json.
A point that is there already is not served again.
"""

from pathlib import Path
from typing import Any

from absl import flags
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.systems import mechanism_of
from ega_jax.evaluation.levers import served
from ega_jax.evaluation.report import read_results, write_results
from ega_jax.training.progress import ProgressReport
from experiments import auction_align, command

flags.adopt_module_key_flags(auction_align)
FIGURES = ("rpm", "bid_rpm", "ctr_poi", "ad_share")
_ALPHAS = flags.DEFINE_list("alphas", ["0.3", "0.6", "1.2", "1.8", "2.4"], "Values of alpha.")
_BETAS = flags.DEFINE_list("betas", ["0", "1", "2", "8", "32"], "Values of beta.")
_RULE = flags.DEFINE_string("rule", None, "Payment rule; by default the system's.")
_SESSIONS = flags.DEFINE_integer("num_sessions", 512, "Test sessions to serve.", 1)


def main() -> None:
    """Runs the command."""
    run = auction_align.find_system()
    system, workdir = run.system.name, run.pretraining.workdir
    mechanism = mechanism_of(run)
    rule, num_sessions = _RULE.value or mechanism.rule, _SESSIONS.value
    batches = run.sessions("test", num_sessions, run.config["auction"]["batch_size"])
    truth = auction_align.truth_of(run)
    place = system, f"{rule}, {num_sessions} sessions"
    known = known_points(workdir, *place)
    points = [("alpha", value) for value in _ALPHAS.value] + [("beta", v) for v in _BETAS.value]
    with ProgressReport("serving", 0, len(points)) as progress:
        for number, (lever, value) in enumerate(points):
            if value not in known.get(lever, {}):
                found = served(mechanism, batches, truth, rule, **{lever: float(value)})
                write_results(workdir, {"sweep": {place[0]: {place[1]: {lever: {value: found}}}}})
            progress.count(number + 1, len(points))
    known = known_points(workdir, *place)
    print_points(known, ", ".join(place))
    path = run.system / "figures" / f"sweep-{rule}.png"
    draw_points(known, path)
    print(f"{path.name} is in {path.parent}")


def known_points(workdir: Path, *place: str) -> dict[str, dict[str, Any]]:
    """Lever -> value -> judge -> figures, as far as they are in `results.json`."""
    found = read_results(workdir).get("sweep", {})
    for name in place:
        found = found.get(name, {})
    return found


def print_points(points: dict[str, dict[str, Any]], title: str) -> None:
    """Prints one line per point and judge."""
    table = Table("lever", "value", "judge", *FIGURES, title=title, title_justify="left")
    for lever, values in points.items():
        for value in sorted(values, key=float):
            for judge, figures in values[value].items():
                table.add_row(lever, value, judge, *(f"{figures[name]:.4g}" for name in FIGURES))
    Console(width=100).print(table)


def draw_points(points: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws revenue and click rate over each lever, by each judge."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (lever, values) in zip(panels, points.items(), strict=True):
        other = axes.twinx()
        ordered = sorted(values, key=float)
        of = lambda judge, name, v=values, o=ordered: [v[value][judge][name] for value in o]
        for judge, style in (("model", "--"), ("truth", "-")):
            if judge in values[ordered[0]]:
                axes.plot(ordered, of(judge, "rpm"), f"C0o{style}", label=f"RPM, {judge}")
                other.plot(ordered, of(judge, "ctr_poi"), f"C1s{style}", label=f"CTR-poi, {judge}")
        axes.set(xlabel=lever, ylabel="RPM")
        other.set(ylabel="CTR-poi")
    figure.legend(handles=[*axes.lines, *other.lines], loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    command.run(main, __doc__)
