"""A few slates with their explanations."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ega_jax.reporting.blocks import Block, Chart, Charts, Section, Table, Text
from ega_jax.reporting.charts import COLOURS, chart

Slot = Mapping[str, Any]  # As `Explanation.to_dict` returns.


@dataclasses.dataclass(frozen=True)
class ExplainedSlate:
    """The slate of one test session."""

    session: int  # Its id in the log.
    rule: str  # The payment rule.
    history: Sequence[int]  # POIs of the user's history, most recent last.
    slots: Sequence[Slot]  # Filled slots, first slot first.


def slates_section(name: str, slates: Sequence[ExplainedSlate], titles: Sequence[str]) -> Section:
    """Shows why each item of a few slates is there, and what it pays.

    Args:
      name: of the system.
      slates: of it.
      titles: what each POI is called.
    """
    text = Text(
        "The log bid weight is what bids add to an item in the search, log z its log allocation "
        "probability there. An ad keeps its slot down to the lowest bid. The contribution is the "
        "value of the slate less that of the best slate without the item. Prices are per click; "
        "click rates are predicted by the reward model."
    )
    blocks: list[Block] = [text]
    for slate in slates:
        recent = ", ".join(titles[poi] for poi in slate.history[-3:]) or "nothing"
        blocks.append(Text(f"Session {slate.session}. The user's last visits: {recent}."))
        blocks.append(_table(slate, titles))
        blocks.append(Text(" ".join(_sentence(slot, slate.rule, titles) for slot in _ads(slate))))
    blocks.append(Charts([_prices(slate) for slate in slates if _ads(slate)]))
    return Section(f"Slates of {name}, explained", blocks)


def _ads(slate: ExplainedSlate) -> list[Slot]:
    return [slot for slot in slate.slots if slot["is_ad"]]


def _table(slate: ExplainedSlate, titles: Sequence[str]) -> Table:
    columns = ("slot", "item", "kind", "bid", "price", "lowest bid", "log bid weight", "log z")
    columns += ("click rate", "contribution")
    rows = []
    for slot in slate.slots:
        money = [slot["bid"], slot["price"][slate.rule], slot["lowest_bid"]]
        kind, money = ("ad", money) if slot["is_ad"] else ("organic", [None] * 3)
        item = titles[slot["items"]]
        has_weight = min(slot["weight"], default=0.0) > 0
        weight = float(np.log(slot["weight"]).sum()) if has_weight else None
        search = [weight, slot["log_z"]]
        rows.append(
            [slot["slot"] + 1, item, kind, *money, *search, slot["pctr"], slot["contribution"]]
        )
    return Table(columns, rows)


def _sentence(slot: Slot, rule: str, titles: Sequence[str]) -> str:
    """Why an ad is in its slot, in words."""
    price, bid, lowest = slot["price"][rule], slot["bid"], slot["lowest_bid"]
    down_to = f"down to a bid of {lowest:.3g}" if lowest > 0 else "even without a bid"
    return (
        f"{titles[slot['items']]} bids {bid:.3g} per click, pays {price:.3g}, and keeps slot "
        f"{slot['slot'] + 1} {down_to}."
    )


def _prices(slate: ExplainedSlate) -> Chart:
    """The prices of the slate's ads under every payment rule."""
    ads = _ads(slate)
    places = np.arange(len(ads))

    def draw(axes: Axes) -> None:
        axes.bar(places, [slot["bid"] for slot in ads], width=0.6, color="#e4eef3", label="bid")
        for rule, marker in zip(ads[0]["price"], "ox^svDP*", strict=False):
            own = rule == slate.rule
            colour = COLOURS[0] if own else COLOURS[1]
            prices = [slot["price"][rule] for slot in ads]
            fill = colour if own else "none"
            axes.plot(places, prices, marker, color=colour, mfc=fill, label=rule)
        axes.set(xlabel="slot", ylabel="currency per click", xticks=places)
        axes.set_xticklabels([str(slot["slot"] + 1) for slot in ads])

    return chart(f"Session {slate.session}: bids and prices", draw)
