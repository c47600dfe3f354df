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
    seconds: Mapping[str, float]  # Phase of training -> what it took.
    samples: Mapping[str, int]  # Trained model -> samples seen.


def overview_section(data: str, version: str, systems: Mapping[str, RunFacts]) -> Section:
    """Says what was run on what.

    Args:
      data: describes the data in a sentence.
      version: of the package that makes the report.
      systems: by name.
    """
    rows = [
        [name, each.kind, each.rule, sum(each.seconds.values()) / 60]
        for name, each in systems.items()
    ]
    listed = lambda field: [
        [name, *pair] for name, each in systems.items() for pair in getattr(each, field).items()
    ]
    return Section(
        "What was run",
        [
            Text(f"{data} Report by ega_jax {version}."),
            Table(("system", "kind", "prices", "minutes of training"), rows),
            Folded(
                "Seconds of each phase, and samples that each model has seen",
                [
                    Table(("system", "phase", "seconds"), listed("seconds")),
                    Table(("system", "model", "samples seen"), listed("samples")),
                ],
            ),
        ],
    )


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
