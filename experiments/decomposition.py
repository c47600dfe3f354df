"""Decomposes a trained system's loss of revenue by stage, relative to the best slate.

Serves test sessions and searches for the best slates by the true click probabilities, with more
constraints at each step, down to the system's own slate at its own prices. Prints the loss at each
step. The log must have known true probabilities, i.e. come from the simulated market.

    python -m experiments.decomposition --workdir=runs/market-tiny
    python -m experiments.decomposition --workdir=runs/market-small/market-0 --system=mca

Writes the figure decomposition.png to systems/SYSTEM/figures and adds the numbers to results.json.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.decomposition import decompose, losses
from ega_jax.data.market.clicks import Truth
from ega_jax.evaluation.attainable import Sample, samples_of
from ega_jax.evaluation.report import save_figure, write_results
from ega_jax.phases.auction import AuctionTraining
from ega_jax.training.progress import ProgressReport
from experiments.common import command
from experiments.common.runs import find_system

command.define_system()
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
_SESSIONS = flags.DEFINE_integer("decomposed_sessions", 128, "About how many test sessions.", 1)


def main() -> None:
    """Runs the command."""
    run = find_system(command.named_system())
    name, workdir = run.name, run.pretraining.workdir
    truth = Truth.load(run.pretraining.folder)
    found = measure(run, truth, _SESSIONS.value)
    write_results(workdir, {"decomposition": {name: found}})
    print_losses(found, f"{name}, {_SESSIONS.value} sessions")
    path = draw_losses(found, run.folder / "figures" / "decomposition.png")
    print(f"{path.name} is in {path.parent}")


def measure(run: AuctionTraining, truth: Truth, num_sessions: int) -> dict[str, dict[str, float]]:
    """Measures the loss at each step in `num_sessions` test sessions; see `losses`."""
    mechanism, size = run.mechanism, run.settings.auction.batch_size
    samples = samples_of(
        run.sessions("test", num_sessions, size),
        truth,
        run.items.catalogue.poi_creatives,
        run.dataset.books,
    )
    with ProgressReport("searching", 0, num_sessions) as progress:

        def counted() -> Iterator[Sample]:
            for number, sample in enumerate(samples):
                yield sample
                progress.count(min((number + 1) * size, num_sessions), num_sessions)

        return losses(decompose(mechanism, counted()))


def stages_of(found: Mapping[str, Any]) -> list[str]:
    """Returns the stage of each slate's loss; without a cascade, choosing items is one stage."""
    named = LOST_AT if "listed" in found else LOST_AT | {"placed": "choice of items"}
    return [named[name] for name in found]


def print_losses(found: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Prints one line per slate: its value, its share of the best, its loss and the stage."""
    table = Table(
        "slate", "currency per request", "share", "lost", "at", title=title, title_justify="left"
    )
    for (name, figures), stage in zip(found.items(), stages_of(found), strict=True):
        share, lost = (f"{100 * figures[column]:.1f} %" for column in ("share", "lost"))
        table.add_row(name, f"{figures['currency']:.4g}", share, lost if stage else "", stage)
    Console(width=100).print(table)


def draw_losses(found: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """Draws a bar per step: the remaining value, and on top the loss at the step."""
    figure = Figure(figsize=(1.3 * len(found) + 1, 3.4), layout="constrained")
    axes = figure.subplots()
    share, lost = ([f[column] for f in found.values()] for column in ("share", "lost"))
    axes.bar(list(found), share, color="C0", label="left")
    axes.bar(list(found), lost, bottom=share, color="C3", alpha=0.6, label="lost")
    for place, (left, gone, stage) in enumerate(zip(share, lost, stages_of(found), strict=True)):
        axes.text(place, left / 2, f"{100 * left:.1f} %", ha="center", color="white")
        if stage:
            text = f"{stage}\n-{100 * gone:.1f} %"
            axes.text(place, left + gone + 0.01, text, ha="center", fontsize=8)
    axes.set(ylabel="share of the attainable value", ylim=(0, 1.18))
    save_figure(figure, path)
    return path


if __name__ == "__main__":
    command.run(main, __doc__)
