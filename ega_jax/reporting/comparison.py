"""Several workdirs side by side."""

from collections.abc import Mapping

from ega_jax.evaluation.visits import Visits
from ega_jax.reporting.blocks import Section, Table, Text
from ega_jax.reporting.reward import comparisons
from ega_jax.reporting.systems import HEADINGS, Measurements, figures_by_better_judge


def comparison_section(
    workdirs: Mapping[str, Mapping[str, tuple[Measurements, Visits]]],
) -> Section:
    """Compares the systems of several workdirs at their own prices, by the better judge.

    Args:
      workdirs: workdir -> system -> what was measured, and what it served.
    """
    columns = (
        "workdir",
        "system",
        "prices",
        "by",
        *HEADINGS.values(),
        "Psi, %",
        "predicted / known",
    )
    rows = []
    for workdir, systems in workdirs.items():
        for name, (system, visits) in systems.items():
            levels = figures_by_better_judge(system)
            known = comparisons(visits)[0].ratio
            row = [workdir, name, system.rule, visits.judge, *levels.values(), known]
            rows.append(row)
    text = Text(
        "Each row is of the test sessions of its own workdir. Figures by different judges, or of "
        "different data, do not compare."
    )
    return Section("Comparison", [text, Table(columns, rows)])
