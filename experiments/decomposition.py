"""Decomposes what trained systems lose of the best slate's value, with ceilings beside them.

Serves test sessions and searches for the best slates by the true click probabilities, with more
constraints at each step, down to the system's own slate at its own prices. Prints the loss at each
step. The log must have known true probabilities, i.e. come from the simulated market.

    python -m experiments.decomposition --workdir=runs/market-tiny
    python -m experiments.decomposition --workdir=runs/market-small/market-0 --system=mca
    python -m experiments.decomposition --workdir=runs/market-small/market-0 --system=all

Two ceilings stand beside the steps, both valued by the truth. `visible` is the slate that the large
reward model of experiments.calibrate (--parts=large) values most; it is left out if the workdir has
no such model. `menu` is the best of the slates from which the system chose. With several systems,
as --system=mca,ega or all of the workdir, prints one line per system instead of the steps.

Writes the figure decomposition.png to systems/SYSTEM/figures, with several systems also one to
figures, and adds the numbers to results.json. With --results, `attainable` and `visible` are also
recorded in the folder `ceilings` of the tables' results; experiments.tables draws them into the
frontier of this market.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.decomposition import CEILINGS, decompose, losses
from ega_jax.baselines.settings import Settings
from ega_jax.data.market.clicks import Truth
from ega_jax.evaluation.comparison import FRONTIER_CEILINGS
from ega_jax.evaluation.judges import PredictedClicks, SlateJudge
from ega_jax.evaluation.records import write_record
from ega_jax.evaluation.report import save_figure, write_results
from ega_jax.evaluation.samples import Sample, samples_of
from ega_jax.phases.auction import AuctionTraining
from ega_jax.training.progress import ProgressReport
from experiments.calibrations.reward_models import trained_large_model
from experiments.common import command, workdirs
from experiments.common.protocol import kind_of, manifest
from experiments.common.runs import find_systems

command.define_system(what="A system of the workdir, several as a,b, or all")
flags.adopt_module_key_flags(command)
LOST_AT = {  # Slate -> the stage that loses the difference to the slate before.
    "attainable": "",
    "recalled": "recall",
    "ranked": "pre-ranking and ranking",
    "listed": "auction",
    "placed": "allocation",
    "shown": "creatives",
    "paid": "prices",
}
COMPARED = ("attainable", "visible", "menu", "shown", "paid")  # Columns of the table of systems.
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # Behind text on a line.
_SESSIONS = flags.DEFINE_integer("decomposed_sessions", 128, "About how many test sessions.", 1)
_RESULTS = flags.DEFINE_string(
    "results", None, "Folder of tables whose frontier shows the ceilings.", allow_override=True
)  # Other commands have a flag of this name.

Measured = Mapping[str, Mapping[str, float]]  # Slate -> its figures, as `losses` returns them.


def main() -> None:
    """Runs the command."""
    settings, workdir = workdirs.find_workdir()
    runs, sessions = find_systems(workdir, command.named_system()), f"{_SESSIONS.value} sessions"
    found = measure(runs, Truth.load(runs[0].pretraining.folder), _SESSIONS.value)
    write_results(
        workdir, {"decomposition": dict.fromkeys(found)}
    )  # A ceiling may be left out now.
    write_results(workdir, {"decomposition": found})
    if _RESULTS.value:
        num_slots = runs[0].dataset.summary.num_slots
        record_ceilings(found, settings, num_slots, Path(_RESULTS.value).expanduser())
    paths = [
        draw_losses(found[run.name], run.folder / "figures" / "decomposition.png") for run in runs
    ]
    if len(runs) == 1:
        print_losses(found[runs[0].name], f"{runs[0].name}, {sessions}")
    else:
        print_systems(found, sessions)
        paths.append(draw_systems(found, workdir / "figures" / "decomposition.png"))
    print(f"decomposition.png is in {', '.join(str(path.parent) for path in paths)}")


def measure(
    runs: Sequence[AuctionTraining], truth: Truth, num_sessions: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Measures systems of one workdir in `num_sessions` test sessions, by name; see `losses`."""
    first = runs[0]
    size = first.settings.auction.batch_size
    samples = samples_of(
        first.sessions("test", num_sessions, size),
        truth,
        first.items.catalogue.poi_creatives,
        first.dataset.summary.num_slots,
        first.dataset.books,
    )
    mechanisms, model = {run.name: run.mechanism for run in runs}, large_model(first)
    with ProgressReport("searching", 0, num_sessions) as progress:

        def counted() -> Iterator[Sample]:
            for number, sample in enumerate(samples):
                yield sample
                progress.count(min((number + 1) * size, num_sessions), num_sessions)

        found = decompose(mechanisms, counted(), model)
    return {name: losses(values) for name, values in found.items()}


def record_ceilings(
    found: Mapping[str, Measured], settings: Settings, num_slots: int, results: Path
) -> None:
    """Records the ceilings of a market, in currency per 1000 items shown, for its tables."""
    market = settings.data.market.seed
    value = {
        slate: 1000 / num_slots * max(measured[slate]["currency"] for measured in found.values())
        for slate in FRONTIER_CEILINGS
        if all(slate in measured for measured in found.values())
    }
    record = {
        "system": "ceilings",
        "market": market,
        "data": kind_of(settings),
        "value": value,
        "sessions": _SESSIONS.value,
        "manifest": manifest(),
    }
    write_record(results / "ceilings" / f"{settings.name}-{market}.json", record)


def large_model(run: AuctionTraining) -> Callable[[Sample], SlateJudge] | None:
    """Returns the judge that the workdir's large reward model is; None, and says so, without it."""
    trained = trained_large_model(run)
    if trained is None:
        workdir = run.pretraining.workdir
        print(
            "`visible` is left out, as the workdir has no large reward model; to train it: "
            f"python -m experiments.calibrate --workdir={workdir} --parts=large --out=DIR"
        )
        return None
    params, config = trained
    return lambda sample: PredictedClicks.of(params, config, run.items, sample.asked)


def stages_of(found: Mapping[str, Any]) -> list[str]:
    """Returns the stage of each slate's loss; without a cascade, choosing items is one stage."""
    named = LOST_AT if "listed" in found else LOST_AT | {"placed": "choice of items"}
    return [named[name] for name in found]


def print_losses(found: Measured, title: str) -> None:
    """Prints one line per slate: its value, its share of the best, its loss and the stage."""
    table = Table(
        "slate", "currency per request", "share", "lost", "at", title=title, title_justify="left"
    )
    chain, ceilings = _parts(found)
    for (name, figures), stage in zip(chain.items(), stages_of(chain), strict=True):
        lost = percent(figures["lost"]) if stage else ""
        table.add_row(name, currency(figures), percent(figures["share"]), lost, stage)
    table.add_section()
    for name, figures in ceilings.items():
        table.add_row(name, currency(figures), percent(figures["share"]), "", "ceiling")
    Console(width=100).print(table)


def print_systems(found: Mapping[str, Measured], title: str) -> None:
    """Prints one line per system: the value of each slate, and its share of the best."""
    columns = [name for name in COMPARED if any(name in measured for measured in found.values())]
    table = Table("system", *columns, title=f"currency per request, {title}", title_justify="left")
    for system, measured in found.items():
        shown = [
            f"{currency(measured[name])} ({percent(measured[name]['share'])})" for name in columns
        ]
        table.add_row(system, *shown)
    Console(width=120).print(table)


def draw_losses(found: Measured, path: Path) -> Path:
    """Draws a bar per step, with the remaining value and the loss, and a line per ceiling."""
    chain, ceilings = _parts(found)
    figure = Figure(figsize=(1.3 * len(chain) + 1, 3.4), layout="constrained")
    axes = figure.subplots()
    share, lost = ([f[column] for f in chain.values()] for column in ("share", "lost"))
    axes.bar(list(chain), share, color="C0", label="left")
    axes.bar(list(chain), lost, bottom=share, color="C3", alpha=0.6, label="lost")
    for place, (left, gone, stage) in enumerate(zip(share, lost, stages_of(chain), strict=True)):
        axes.text(place, left / 2, percent(left), ha="center", color="white")
        if stage:
            text = f"{stage}\n-{percent(gone)}".replace(" and ", "\nand ")
            axes.text(place, left + gone + 0.025, text, ha="center", fontsize=8, bbox=CLEAR)
    for name, style in zip(CEILINGS, ("--", ":"), strict=True):
        if name in ceilings:
            level = ceilings[name]["share"]
            label = f"{name} {percent(level)}"
            axes.axhline(level, color="0.3", linestyle=style, zorder=0, label=label)
    figure.legend(loc="outside right upper")
    axes.set(ylabel="share of the attainable value", ylim=(0, 1.18))
    save_figure(figure, path)
    return path


def draw_systems(found: Mapping[str, Measured], path: Path) -> Path:
    """Draws a group of bars per system: each slate's share of the best."""
    columns = [
        name for name in COMPARED[1:] if any(name in measured for measured in found.values())
    ]
    figure = Figure(figsize=(1.6 * len(found) + 2, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for number, name in enumerate(columns):
        places = [place + (number + 0.5) * width - 0.4 for place in range(len(found))]
        shares = [measured[name]["share"] for measured in found.values()]
        axes.bar(places, shares, width, label=name)
    axes.set_xticks(range(len(found)), list(found))
    axes.set(ylabel="share of the attainable value", ylim=(0, 1))
    figure.legend(loc="outside right upper")
    save_figure(figure, path)
    return path


def percent(share: float) -> str:
    """Formats a share."""
    return f"{100 * share:.1f} %"


def currency(figures: Mapping[str, float]) -> str:
    """Formats a slate's value."""
    return f"{figures['currency']:.4g}"


def _parts(found: Measured) -> tuple[Measured, Measured]:
    """Splits the slates into those of the chain and the ceilings."""
    ceilings = {name: figures for name, figures in found.items() if name in CEILINGS}
    return {name: figures for name, figures in found.items() if name not in ceilings}, ceilings


if __name__ == "__main__":
    command.run(main, __doc__)
