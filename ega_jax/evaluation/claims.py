"""The claims of the paper's tables 2 and 3, beside runs on simulated markets (sec. 5).

A claim is that one system is above or below another in a metric. The runs agree with it if the
interval of the lift over markets lies on the same side of 0 as the paper's lift, and disagree if it
lies on the other side. If it holds 0, or there is one market, they cannot tell. The size of the
paper's lift plays no part.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ega_jax.evaluation.lifts import lift_text, student_interval
from ega_jax.evaluation.records import SCORERS, Record

CLAIM = ("system", "other", "metric", "paper")
COLUMNS = (*CLAIM, "scorer", "mean", "low", "high", "markets", "verdict")
METRICS = ("rpm", "ctr_poi", "ctr_img", "psi_paper")
PAPER = {  # System -> its metrics in tables 2 and 3; Psi in per cent.
    "mca": (192.45, 0.0558, 0.0529, 3.6),
    "gr": (206.73, 0.0582, 0.0546, 8.4),
    "ega": (230.41, 0.0612, 0.0583, 2.7),
    "ega-mtp": (225.45, 0.0593, 0.0562, 2.7),
    "ega-end": (218.21, 0.0600, 0.0572, 3.0),
    "ega-bid": (222.94, 0.0603, 0.0576, 4.1),
    "ega-gsp": (226.17, 0.0608, 0.0580, 8.2),
}
PAPER["ega-paper"] = PAPER["ega"]  # The paper's form, where `ega` has other tokens and creatives.
COMPARED = (
    *((system, other) for system in ("ega", "ega-paper") for other in ("mca", "gr")),
    ("gr", "mca"),
    *(("ega", ablation) for ablation in ("ega-mtp", "ega-end", "ega-bid", "ega-gsp")),
)


def claim_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Returns one row per claim and scorer, of the markets on which both systems are recorded.

    `paper`, `mean`, `low` and `high` are lifts of `system` over `other` in per cent, the ends those
    of Student's 95 % interval over markets. Claims without a common market, and differences of 0 in
    the paper, have no row.
    """
    means: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for record in records:
        for scorer, figures in record.get("means", {}).items():  # A failed run has none.
            means[record["system"], scorer][record["market"]] = figures
    rows = []
    for (system, other), scorer in itertools.product(COMPARED, SCORERS):
        own_means, other_means = means[system, scorer], means[other, scorer]
        pairs = [(own_means[n], other_means[n]) for n in own_means if n in other_means]
        for metric, *levels in zip(METRICS, PAPER[system], PAPER[other], strict=True):
            lifts = [_lift(own[metric], others[metric]) for own, others in pairs]
            paper = _lift(*levels)
            if lifts and paper:
                claim = {"system": system, "other": other, "metric": metric, "paper": paper}
                rows.append(claim | {"scorer": scorer} | _judged(lifts, paper))
    return rows


def _lift(own: float | None, other: float | None) -> float:
    """The lift in per cent; NaN if a figure is undefined or divided by 0."""
    return 100 * (own / other - 1) if own is not None and other else float("nan")


def _judged(lifts: list[float], paper: float) -> dict[str, Any]:
    """The mean lift, its interval and what it says of the paper's."""
    low, high = student_interval(lifts)
    verdict = "cannot tell"
    if low > 0 or high < 0:
        verdict = "agrees" if (low > 0) == (paper > 0) else "disagrees"
    found = {"mean": float(np.mean(lifts)), "low": low, "high": high, "markets": len(lifts)}
    return found | {"verdict": verdict}


def claims_markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Returns a table with one line per claim; the verdict is that of the truth."""
    claims: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        claims[tuple(row[column] for column in (*CLAIM, "markets"))][row["scorer"]] = row
    lines = ["| claim | metric | paper | model | truth | markets | verdict |", "|---" * 7 + "|"]
    for (system, other, metric, paper, markets), found in claims.items():
        model, truth = (lift_text(found[scorer]) if scorer in found else "" for scorer in SCORERS)
        verdict = found["truth"]["verdict"] if "truth" in found else ""
        cells = metric, f"{paper:+.1f} %", model, truth, str(markets), verdict
        lines.append(f"| {system} over {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
