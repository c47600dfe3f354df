"""The data of a report: what the log holds, and how much of it tells of the slates served."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ega_jax.evaluation.off_policy import overlap_by_slots
from ega_jax.evaluation.visits import SHOWN, Visits
from ega_jax.reporting.blocks import Block, Chart, Charts, Section, Table, Text, Warned
from ega_jax.reporting.charts import by_slot, chart
from ega_jax.reporting.page import shown

RATE, IMAGE_RATE = "CTR of the POI by slot", "CTR of the creative by slot"  # Names of facts.
SHARES = np.linspace(0, 1, 101)  # Of the ads whose bids are at most an amount.
LITTLE = 0.01  # A log of which less tells of the slates served is warned of.


def data_section(
    facts: Mapping[str, Any],
    warnings: Sequence[str],
    true_rates: Sequence[float] | None,
    served: Mapping[str, Visits],
) -> Section:
    """Describes a log.

    Args:
      facts: of the log, as `description.describe` names them.
      warnings: of the log.
      true_rates: true click rate of what the log shows in each slot; None if unknown.
      served: what each system served.
    """
    rates = {"observed": facts[RATE]} | ({} if true_rates is None else {"true": true_rates})
    charts = [
        by_slot("Click rate of the log's slates", rates, "clicks per item shown"),
        _bids(next(iter(served.values()))),
        by_slot(
            "Share of ads in the slates served",
            {name: each.is_ad.mean(axis=0) for name, each in served.items()},
            "share of ads",
        ),
    ]
    rows = [[name, _text(value)] for name, value in facts.items() if name not in (RATE, IMAGE_RATE)]
    blocks: list[Block] = [Warned(text) for text in warnings]
    return Section("Data", [*blocks, Charts(charts), Table(("fact", "value"), rows)])


@dataclasses.dataclass(frozen=True)
class Support:
    """How much of a log is about the slates that a system serves, as shares."""

    slots: float  # Of the slots served: the log showed the same item in the same session.
    slates: float  # Of the slates served: the log showed the same items.
    overlap: tuple[float, ...]  # `overlap_by_slots`; empty if the policy of the log is unknown.


def support_of(visits: Visits) -> Support:
    """Measures the support of what is served."""
    filled, chance = visits.item >= 0, visits.chance
    return Support(
        slots=float(visits.is_logged.sum() / max(filled.sum(), 1)),
        slates=float((visits.is_logged | ~filled).all(axis=1).mean()),
        overlap=tuple(overlap_by_slots(chance)) if np.isfinite(chance).all() else (),
    )


def support_section(served: Mapping[str, Visits]) -> Section:
    """Tells how much of the log is about the slates that systems serve."""
    found = {name: support_of(visits) for name, visits in served.items()}
    rows = [
        [
            name,
            100 * each.slots,
            100 * each.slates,
            100 * each.overlap[-1] if each.overlap else None,
        ]
        for name, each in found.items()
    ]
    text = Text(
        "A log tells of a slate only where it shows it. The first two columns count slots and "
        "slates of the same test sessions. The overlap is the effective sample size of "
        "inverse-propensity estimates of the slates served, as a share of the sessions; it is "
        "known if the policy of the log is known."
    )
    table = Table(("system", "same slots, %", "same slates, %", "overlap, %"), rows)
    known = {name: each.overlap for name, each in found.items() if each.overlap}
    title = "Overlap if only the first slots count"
    charts = [by_slot(title, known, "share of the sessions", in_logs=True)] if known else []
    warnings = [
        Warned(
            f"{name}: less than {100 * LITTLE:g} % of the log tells of the slates served. What "
            "is predicted of them rests on the reward model."
        )
        for name, overlap in known.items()
        if overlap[-1] < LITTLE
    ]
    blocks: list[Block] = [*warnings, text, table, Charts(charts)]
    return Section("How much of what is served the log supports", blocks)


def _bids(visits: Visits) -> Chart:
    """The distributions of the bids for sale and of those shown."""
    among = {"all ads for sale": visits.ad >= 0, "ads shown": visits.fate == SHOWN}

    def draw(axes: Axes) -> None:
        for label, where in among.items():
            positive = visits.ad_bid[where & (visits.ad_bid > 0)]
            if positive.size:
                axes.plot(np.quantile(positive, SHARES), SHARES, label=label)
        axes.set(xscale="log", xlabel="bid, currency per click", ylabel="share of ads at most")

    return chart("Bids", draw)


def _text(value: Any) -> str:
    """A fact in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown(each)}" for name, each in value.items())
    return shown(value)
