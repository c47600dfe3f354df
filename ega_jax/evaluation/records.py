"""Records of runs: what a system measured on one market, and its paired lifts there (sec. 5).

A record is JSON. It stands for itself: records of other machines and days can be merged.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ega_jax.errors import UserError
from ega_jax.evaluation.lifts import (
    Statistic,
    bootstrap_interval,
    lift,
    measured,
    value_lift_at_clicks,
)
from ega_jax.evaluation.serving import Outcomes, figures_of
from ega_jax.training.files import read_json, write_json

SCORERS = ("model", "truth")
OTHERS = ("mca", "gr")  # Systems that lifts are over.
VALUED = ("value", "ctr_poi", "ctr_img", "ad_share", "conversions")  # At the system's own levers.
PRICED = ("rpm", "surplus")  # At its own prices.
JUDGED = ("psi", "psi_paper")  # See `auction.scores`.
COSTS = ("flops", "ms")  # Of a request; the same by every scorer.
LIFTS = tuple(
    f"{lifted}_vs_{other}" for lifted in ("value", "value_at_ctr", "rpm") for other in OTHERS
)
OWN = "own", 0.0  # The point of a frontier at the system's own levers.
ON_FRONTIER = ("value", "ctr_poi", "ad_share")

ByJudge = Mapping[str, Outcomes]
Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Served:
    """What a run has served, on the same sessions as the other systems of its market."""

    value: ByJudge  # At the system's own levers; prices do not matter.
    rpm: ByJudge  # At its own prices.


@dataclasses.dataclass(frozen=True)
class Results(Served):
    """All that a run has measured."""

    psi: Mapping[str, Mapping[str, float]]  # Judge -> the metrics of regret.
    psi_sessions: int
    frontier: Mapping[tuple[str, float], ByJudge]  # (lever, setting) -> outcomes; `OWN` first.
    costs: Mapping[str, float]


def record_of(own: Results, others: Mapping[str, Served]) -> dict[str, Any]:
    """Returns what the record of a run says of its measurements, as JSON.

    Args:
      own: the run's.
      others: what `OTHERS` have served on the same market, as far as it is known.

    Returns:
      `means`, `lifts` (per cent) and `intervals` (of the lifts, by resampling sessions), by scorer
      and metric; `frontier`, a list of points; `sessions` by metric.
    """
    means, lifts, intervals = {}, {}, {}
    for judge, outcomes in own.value.items():
        valued, priced = figures_of(outcomes), figures_of(own.rpm[judge])
        means[judge] = {name: valued[name] for name in VALUED}
        means[judge] |= {name: priced[name] for name in PRICED}
        means[judge] |= {name: own.psi[judge][name] for name in JUDGED} | dict(own.costs)
        compared = dict(_compared(own, others, judge))
        lifts[judge] = {name: measured(*each) for name, each in compared.items()}
        intervals[judge] = {name: bootstrap_interval(*each) for name, each in compared.items()}
    return {
        "means": means,
        "lifts": lifts,
        "intervals": intervals,
        "frontier": list(_points(own)),
        "sessions": {
            "value": _num_sessions(own.value),
            "rpm": _num_sessions(own.rpm),
            "psi": own.psi_sessions,
        },
    }


def _compared(
    own: Results, others: Mapping[str, Served], judge: str
) -> Iterable[tuple[str, tuple[Statistic, list[Outcomes]]]]:
    """Yields the name of each lift, its statistic, and the outcomes that it is of."""
    points = [point[judge] for point in own.frontier.values()]
    for name, other in others.items():
        yield f"value_vs_{name}", (lift("value"), [own.value[judge], other.value[judge]])
        yield f"value_at_ctr_vs_{name}", (value_lift_at_clicks, [other.value[judge], *points])
        yield f"rpm_vs_{name}", (lift("rpm"), [own.rpm[judge], other.rpm[judge]])


def _points(own: Results) -> Iterable[dict[str, Any]]:
    for (lever, setting), point in own.frontier.items():
        shown = {judge: figures_of(outcomes) for judge, outcomes in point.items()}
        kept = {
            judge: {name: figures[name] for name in ON_FRONTIER} for judge, figures in shown.items()
        }
        yield {"lever": lever, "setting": setting} | kept


def _num_sessions(by_judge: ByJudge) -> int:
    outcomes = next(iter(by_judge.values()))
    return int(np.count_nonzero(outcomes.impressions))


def read_records(folder: Path, data: Mapping[str, Any]) -> list[Record]:
    """Reads the records of the runs in `folder` that are on a kind of data, in order of name.

    Args:
      folder: the folder of `*.json`; it may be absent.
      data: what `record["data"]` must be.

    Raises:
      UserError: a file is no record, or two are of the same run.
    """
    found: dict[tuple[str, int], Path] = {}
    records: list[Record] = []
    for path in sorted(folder.glob("*.json")):
        record = read_json(path)
        if not isinstance(record, dict) or not {"data", "system", "market"} <= record.keys():
            raise UserError(f"{path} is no record of a run")
        if record["data"] != data:
            continue
        run = record["system"], record["market"]
        if run in found:
            raise UserError(f"{path} and {found[run]} are both of {run[0]} on market {run[1]}")
        found[run] = path
        records.append(record)
    return records


def write_record(path: Path, record: Record) -> None:
    """Writes the record of a run as JSON; figures that are not finite become `null`."""
    write_json(path, _finite(record))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
