"""The beginning of a report: what was run on what, and its most important figures."""

import dataclasses
from collections.abc import Mapping, Sequence

from ega_jax.evaluation.visits import Visits
from ega_jax.reporting.blocks import Folded, KeyFigure, Section, Table, Text
from ega_jax.reporting.reward import comparisons
from ega_jax.reporting.systems import Measurements, figures_by_better_judge


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """How one system was trained."""

    kind: str
    rule: str  # Its payment rule.
    seconds: Mapping[str, float]  # Phase -> what it took.
    samples: Mapping[str, int]  # Phase -> samples seen.


def overview_section(data: str, version: str, systems: Mapping[str, RunFacts]) -> Section:
    """Says what was run on what.

    Args:
      data: describes the data in a sentence.
      version: of the package that makes the report.
      systems: by name.
    """
    rows = [[name, each.kind, each.rule, _minutes(each)] for name, each in systems.items()]
    phases = [
        [name, phase, each.samples.get(phase), seconds]
        for name, each in systems.items()
        for phase, seconds in each.seconds.items()
    ]
    return Section(
        "What was run",
        [
            Text(f"{data} Report by ega_jax {version}."),
            Table(("system", "kind", "prices", "minutes of training"), rows),
            Folded(
                "Samples and seconds of each phase and measurement",
                [Table(("system", "phase", "samples seen", "seconds"), phases)],
            ),
        ],
    )


def _minutes(facts: RunFacts) -> float:
    """The time of the phases that see samples."""
    return sum(facts.seconds[phase] for phase in facts.seconds if phase in facts.samples) / 60


def key_figures(system: Measurements, visits: Visits) -> Sequence[KeyFigure]:
    """The figures at the top, of one system by the better judge."""
    levels = figures_by_better_judge(system)
    known = comparisons(visits)[0]
    return [
        KeyFigure("value per 1000 items", levels["value"], "clicks at full bids"),
        KeyFigure("RPM", levels["rpm"], f"prices: {system.rule}"),
        KeyFigure("CTR-poi", levels["ctr_poi"], "clicks per item shown"),
        KeyFigure("Psi, %", levels["psi"], "what lying gains"),
        KeyFigure("predicted / known clicks", known.ratio, f"known by {known.known_by}"),
    ]
