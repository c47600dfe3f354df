"""Several workdirs side by side."""

from collections.abc import Mapping

import numpy as np

from ega_jax.evaluation.lifts import bootstrap_interval, lift, measured
from ega_jax.evaluation.off_policy import Ratio
from ega_jax.evaluation.visits import Visits
from ega_jax.reporting.blocks import Section, Table, Text
from ega_jax.reporting.reward import comparisons
from ega_jax.reporting.systems import HEADINGS, Measurements, figures_by_better_judge

COLUMNS = ("workdir", "system", "prices", "by", *HEADINGS.values(), "Psi, %")
COLUMNS += ("predicted / known clicks", "value over the first, %", "RPM over the first, %")
Compared = tuple[Measurements, Visits]


def comparison_section(workdirs: Mapping[str, Mapping[str, Compared]]) -> Section:
    """Compares the systems of several workdirs at their own prices, by the better judge.

    Args:
      workdirs: workdir -> system -> what was measured, and what it served.
    """
    first = next(iter(next(iter(workdirs.values())).values()))
    rows = [
        [workdir, name, *_row(compared, first)]
        for workdir, systems in workdirs.items()
        for name, compared in systems.items()
    ]
    text = Text(
        "Each row is of the test sessions of its own workdir. Figures by different judges, or of "
        "different data, do not compare. Lifts over the first row are paired, with intervals over "
        "sessions; they are given if the truth scores the same requests."
    )
    return Section("Comparison", [text, Table(COLUMNS, rows)])


def _row(compared: Compared, first: Compared) -> list[object]:
    system, visits = compared
    known = comparisons(visits)[0].ratio
    levels = figures_by_better_judge(system).values()
    paired = compared is not first and _are_paired(visits, first[1])
    lifts = [_lift(system, first[0], metric) if paired else None for metric in ("value", "rpm")]
    return [system.rule, visits.judge, *levels, known, *lifts]


def _are_paired(visits: Visits, others: Visits) -> bool:
    """Whether the truth knows both, and they are of the same sessions with the same ads."""
    same = (
        np.array_equal(getattr(visits, name), getattr(others, name))
        for name in ("session", "ad", "ad_bid", "was_clicked")
    )
    return visits.judge == others.judge == "truth" and all(same)


def _lift(system: Measurements, other: Measurements, metric: str) -> Ratio:
    """The lift of a metric by the truth, in per cent, with its interval over sessions."""
    pair = [each.by_rule[each.rule]["truth"] for each in (system, other)]
    return Ratio(measured(lift(metric), pair), *bootstrap_interval(lift(metric), pair))
