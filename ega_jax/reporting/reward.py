"""The reward model in a report: on the log, and on the slates that are served."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ega_jax.evaluation.off_policy import Ratio, ratio
from ega_jax.evaluation.visits import Visits
from ega_jax.reporting.blocks import Block, Chart, Charts, Section, Table, Text, Warned
from ega_jax.reporting.charts import COLOURS, by_slot, chart
from ega_jax.reporting.page import interval
from ega_jax.reward.calibration import calibration_curve

MEANING = (
    "A system serves slates that its reward model likes, so it selects the model's errors. The "
    "table compares predicted clicks with true probabilities, if the market knows them, and with "
    "clicks observed in the slots where the log showed the same item in the same session. Other "
    "slots of these slates, and creatives, may differ."
)
RESPONSES = {
    "poi": "click of POI",
    "image": "click of creative",
    "conversion": "conversion",
}
MEASURES = {"auc": "AUC", "logloss": "log-loss", "ece": "calibration error"}
TOLERATED = 0.05  # Relative difference of predicted and known clicks that is not warned of.
FEWEST = 30  # Observed clicks; fewer tell nothing.
BINS = 10


def reward_section(figures: Mapping[str, Any]) -> Section:
    """Tells how well the reward model predicts the log, as `results.json` holds it."""
    has_truth = any(name.startswith("truth_") for name in figures)
    columns = ["response", *MEASURES.values()]
    columns += [f"{name} of the truth" for name in MEASURES.values()] if has_truth else []
    names = [*MEASURES, *(f"truth_{name}" for name in MEASURES)] if has_truth else [*MEASURES]
    rows = [
        [label, *(figures.get(f"{name}_{response}") for name in names)]
        for response, label in RESPONSES.items()
    ]
    caption = "On the slates that the log shows in test sessions. Log-loss is in nats."
    return Section("Reward model on the log", [Table(columns, rows, caption)])


def served_section(served: Mapping[str, Visits]) -> Section:
    """Compares predicted clicks of the slates served with true or observed ones."""
    found = [(name, each) for name, visits in served.items() for each in comparisons(visits)]
    columns = ("system", "known by", "slots", "predicted CTR", "known CTR", "predicted / known")
    rows = [
        [name, each.known_by, each.slots, each.predicted, each.known, each.ratio]
        for name, each in found
    ]
    checked = [(name, comparisons(visits)[0]) for name, visits in served.items()]
    warnings = [Warned(text) for name, each in checked if (text := _warning(name, each))]
    charts = [chart for name, visits in served.items() for chart in _charts(name, visits)]
    blocks: list[Block] = [*warnings, Text(MEANING), Table(columns, rows), Charts(charts)]
    return Section("Predicted and known clicks of the slates served", blocks)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Predicted and known clicks of some slots that are served."""

    known_by: str  # `truth`, or `the log`.
    slots: int
    predicted: float  # Clicks per slot.
    known: float  # Clicks per slot.
    ratio: Ratio | None  # Predicted over known clicks; None with too few clicks.


def comparisons(visits: Visits) -> list[Comparison]:
    """Compares what is served with the truth, if it is known, and with what the log observed."""
    predicted = visits.click["model"]
    found = []
    if "truth" in visits.click:
        found.append(_comparison("truth", predicted, visits.click["truth"], visits.item >= 0))
    return [*found, _comparison("the log", predicted, visits.was_clicked, visits.is_logged)]


def _comparison(
    known_by: str, predicted: np.ndarray, known: np.ndarray, where: np.ndarray
) -> Comparison:
    predicted, known = (np.where(where, x, 0.0).sum(axis=1) for x in (predicted, known))
    slots = int(where.sum())
    enough = known.sum() > 0 and (known_by == "truth" or known.sum() >= FEWEST)
    return Comparison(
        known_by=known_by,
        slots=slots,
        predicted=float(predicted.sum() / max(slots, 1)),
        known=float(known.sum() / max(slots, 1)),
        ratio=ratio(predicted, known) if enough else None,
    )


def _warning(name: str, found: Comparison) -> str:
    """What a reader must know of a comparison, "" if predictions are close."""
    if found.ratio is None:
        return (
            f"{name}: the log shows the items that are served in {found.slots} slots, with fewer "
            f"than {FEWEST} clicks. Observed clicks cannot confirm the predictions."
        )
    value, low, high = found.ratio
    if low <= 1 <= high or abs(value - 1) <= TOLERATED:
        return ""
    more = "more" if value > 1 else "fewer"
    return (
        f"{name}: the reward model predicts {100 * abs(value - 1):.0f} % {more} clicks of the "
        f"slates served than {found.known_by} has (ratio {value:.2f}, {interval(found.ratio)})."
    )


def _charts(name: str, visits: Visits) -> list[Chart]:
    """Predicted and known click rates by slot and by size of the prediction."""
    judge = visits.judge
    if judge == "model":  # Nothing else is known of all slots.
        where, known, label = visits.is_logged, visits.was_clicked, "observed, same items"
    else:
        where, known, label = visits.item >= 0, visits.click[judge], "true"
    if not where.any():
        return []
    predicted = visits.click["model"]
    mean = lambda x: np.where(where, x, 0.0).sum(axis=0) / np.maximum(where.sum(axis=0), 1)
    rates = {"predicted": mean(predicted), label: mean(known)}
    curve = calibration_curve(predicted, known, where, BINS)

    def draw(axes: Axes) -> None:
        most = max(curve.predicted.max(), curve.observed.max())
        axes.plot([0, most], [0, most], color=COLOURS[2], linewidth=1)
        axes.plot(curve.predicted, curve.observed, "o", color=COLOURS[0])
        axes.set(xlabel="predicted click rate", ylabel=f"{label} click rate")

    return [
        by_slot(f"{name}: click rates of the slates served", rates, "clicks per item"),
        chart(f"{name}: tenths of the slots by prediction", draw),
    ]
