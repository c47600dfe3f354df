"""Systems and payment rules in a report: figures, frontiers, regret."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ega_jax.evaluation.auction import MYERSON, Judged
from ega_jax.evaluation.lifts import Statistic, bootstrap_interval, measured
from ega_jax.evaluation.misreports import MULTIPLES
from ega_jax.evaluation.off_policy import Ratio
from ega_jax.evaluation.records import OWN, ByJudge
from ega_jax.evaluation.regrets import gain_by_misreport, psi_by_slot, psi_interval
from ega_jax.evaluation.serving import Outcomes, figures_of
from ega_jax.reporting.blocks import Block, Chart, Charts, Folded, Section, Table, Text
from ega_jax.reporting.charts import by_slot, chart, lines

GSP = "gsp"
SWEPT = ("rpm", "value", "ctr_poi", "ad_share")  # Of the points of `experiments.sweep`.
STORED = (
    "rpm",
    "surplus",
    "ctr_poi",
    "ctr_img",
    "ad_share",
    "psi",
    "psi_10",
    "psi_paper",
    "psi_all",
)
HEADINGS = {
    "value": "value",
    "rpm": "RPM",
    "surplus": "surplus",
    "ctr_poi": "CTR-poi",
    "ctr_img": "CTR-img",
    "ad_share": "ad share",
    "conversions": "conversions",
}
Frontier = Mapping[tuple[str, float], ByJudge]  # (lever, setting) -> outcomes.


@dataclasses.dataclass(frozen=True)
class Measurements:
    """What was measured of one system."""

    rule: str  # Its own payment rule.
    by_rule: Mapping[str, ByJudge]  # Payment rule -> outcomes of the same sessions.
    regret: Mapping[str, Judged]  # Judge -> reports of ads, under all rules.
    frontier: Frontier


def level(outcomes: Outcomes, metric: str) -> Ratio:
    """A metric of `Outcomes.figures` with its 95 % interval by resampling sessions."""
    statistic: Statistic = lambda totals: totals[0].figures()[metric]
    low, high = bootstrap_interval(statistic, [outcomes])
    return Ratio(measured(statistic, [outcomes]), low, high)


def figures_by_better_judge(system: Measurements) -> dict[str, Ratio | None]:
    """The metrics of a system at its own prices, and `psi` in per cent, with intervals."""
    judge, outcomes = list(system.by_rule[system.rule].items())[-1]
    psi = _percent(psi_interval(system.regret[judge], system.rule))
    return {metric: level(outcomes, metric) for metric in HEADINGS} | {"psi": psi}


def systems_section(systems: Mapping[str, Measurements], stored: Mapping[str, Any]) -> Section:
    """A table of every system under every payment rule, by each judge.

    Args:
      systems: by name.
      stored: `systems` of `results.json`, which has oracles and the truthful mode too.
    """
    rows = [row for name, system in systems.items() for row in _rows(name, system)]
    table = Table(("system", "prices", "by", *HEADINGS.values(), "Psi, %"), rows)
    sessions, reported = _sizes(next(iter(systems.values())))
    text = (
        f"Of {sessions} test sessions, {reported} for Psi, with 95 % intervals over sessions. "
        "Value (clicks at full bids), RPM, surplus (value less revenue) and conversions are per "
        "1000 items shown; CTR-poi, CTR-img and ad share are per item. Psi is what advertisers "
        "could gain by misreporting, as a share of their utility. Figures by the model are "
        "predictions of the system's own reward model."
    )
    kept = [
        [name, judge, *(scores[judge].get(metric) for metric in STORED)]
        for name, scores in stored.items()
        for judge in ("model", "truth")
        if judge in scores
    ]
    folded = Folded(
        "Scores in results.json, with oracles", [Table(("system", "by", *STORED), kept)]
    )
    return Section("Systems and payment rules", [Text(text), table, folded])


def _rows(name: str, system: Measurements) -> list[list[Any]]:
    own_first = sorted(system.by_rule, key=lambda rule: rule != system.rule)
    return [
        [
            *(name, rule, judge),
            *(level(outcomes, metric) for metric in HEADINGS),
            _percent(psi_interval(system.regret[judge], rule)),
        ]
        for rule in own_first
        for judge, outcomes in system.by_rule[rule].items()
    ]


def _sizes(system: Measurements) -> tuple[int, int]:
    """The numbers of sessions served, and of those in which ads misreport."""
    outcomes = next(iter(system.by_rule[system.rule].values()))
    judged = next(iter(system.regret.values()))
    return int(np.count_nonzero(outcomes.impressions)), len(judged.value)


def _percent(found: Ratio | None) -> Ratio | None:
    return None if found is None else Ratio(*(100 * x for x in found))


def frontier_section(systems: Mapping[str, Measurements], sweep: Mapping[str, Any]) -> Section:
    """Draws value against clicks along each lever, by the better judge.

    Args:
      systems: by name.
      sweep: `sweep` of `results.json`: system -> measured by what -> setting -> value -> figures.
    """
    charts = [_frontier(name, system.frontier) for name, system in systems.items()]
    rows = [
        [name, setting, value, judge, *(figures[metric] for metric in SWEPT)]
        for name, places in sweep.items()
        for points in places.values()
        for setting, values in points.items()
        for value, judged in values.items()
        for judge, figures in judged.items()
    ]
    text = Text(
        "Each curve changes one lever of the trained system and serves the same sessions. Alpha "
        "is the exponent of bids in the search, beta favours organic items, kappa is the value of "
        "a click beside its bid. The ring is the setting that the system was trained with."
    )
    blocks: list[Block] = [text, Charts(charts)]
    if rows:
        table = Table(("system", "setting", "at", "by", *SWEPT), rows)
        blocks.append(Folded("Points of experiments.sweep", [table]))
    return Section("Value against clicks", blocks)


def _frontier(name: str, frontier: Frontier) -> Chart:
    curves: dict[str, list[tuple[float, float]]] = {}
    for (lever, _), by_judge in sorted(frontier.items(), key=lambda point: point[0]):
        figures = figures_of(list(by_judge.values())[-1])
        curves.setdefault(lever, []).append((figures["ctr_poi"], figures["value"]))

    def draw(axes: Axes) -> None:
        for lever, points in curves.items():
            if lever == OWN[0]:
                axes.plot(*zip(*points, strict=True), "o", ms=11, mfc="none", mec="black")
            else:
                axes.plot(*zip(*points, strict=True), marker="o", label=lever)
        axes.set(xlabel="CTR-poi", ylabel="value per 1000 items")

    return chart(f"{name}: value and clicks", draw)


def incentives_section(systems: Mapping[str, Measurements]) -> Section:
    """Draws Psi by slot, and the gain of misreports, by the better judge."""
    charts = [each for name, system in systems.items() for each in _incentives(name, system)]
    text = Text(
        "Psi by slot is the regret of the ads in a slot over their utility: each ad's best of "
        "about a hundred reports counts. The other figure has one multiple for all ads: the "
        "change of their total utility if each alone reports it. Myerson's prices of the true "
        "clicks are the least possible regret of an allocation that follows bids."
    )
    return Section("What advertisers gain by lying", [text, Charts(charts)])


def _incentives(name: str, system: Measurements) -> list[Chart]:
    judged = list(system.regret.values())[-1]
    rules = [system.rule, *(r for r in (GSP, MYERSON) if r != system.rule and r in judged.price)]
    slots = {
        rule: [
            np.nan if found is None else 100 * found.value for found in psi_by_slot(judged, rule)
        ]
        for rule in rules
    }
    gains = {rule: (MULTIPLES, 100 * gain_by_misreport(judged, rule)) for rule in rules}
    return [
        by_slot(f"{name}: Psi by slot", slots, "Psi, %"),
        lines(f"{name}: gain by misreport", gains, "report, as a multiple of the value", "gain, %"),
    ]
