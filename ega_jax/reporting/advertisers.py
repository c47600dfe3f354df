"""The part for advertisers: what each got, why it lost, and what other bids would get it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ega_jax.evaluation.advertisers import Accounts
from ega_jax.evaluation.landscape import Landscape
from ega_jax.reporting.blocks import Block, Chart, Charts, Folded, Section, Table, Text
from ega_jax.reporting.charts import COLOURS, chart

MOST = 30  # Advertisers in the table.
MEANINGS = {
    "reserve": "its bid was below the reserve",
    "limits": "it would be shown if the number of ads and the gap between them were not limited",
    "outranked": "the search found it, and other items were worth more",
    "never generated": "it was in no slate that the search found, or did not pass an earlier stage",
}


def advertisers_section(
    name: str,
    accounts: Accounts,
    landscapes: Sequence[Landscape],
    titles: Sequence[str],
    by_truth: bool,
) -> Section:
    """Shows the accounts of the advertisers that spend most, and their bid landscapes.

    Args:
      name: of the system.
      accounts: of all POIs.
      landscapes: of some advertisers.
      titles: what each POI is called.
      by_truth: whether clicks are counted by their true probabilities.
    """
    order = accounts.by_spend()
    known = (
        "true click probabilities" if by_truth else "click probabilities that the model predicts"
    )
    meaning = "; ".join(f"{reason}: {text}" for reason, text in MEANINGS.items())
    text = Text(
        f"An advertiser is a POI whose ads were for sale in the sessions served. Clicks, spend and "
        f"surplus are expected totals, by {known}; bids are taken for values. Lost requests, "
        f"by the first reason that holds: {meaning}."
    )
    columns = ("advertiser", "requests", "mean bid", *GOT, *(f"{r}, %" for r in accounts.lost))
    rows = [["all", *_row(accounts, order)], *([titles[p], *_row(accounts, [p])] for p in order)]
    blocks: list[Block] = [text, Table(columns, rows[: MOST + 1], _caption(order))]
    blocks += _landscapes(landscapes, titles)
    return Section(f"For advertisers: results under {name}", blocks)


GOT = ("impressions", "clicks", "conversions", "spend", "price per click", "surplus", "shown, %")


def _row(accounts: Accounts, pois: Sequence[int] | np.ndarray) -> list[float]:
    """The cells of some advertisers together, without a name."""
    total = lambda amounts: float(amounts[pois].sum())
    requests, clicks, spend = map(total, (accounts.requests, accounts.clicks, accounts.spend))
    asked = float((accounts.bid * accounts.requests)[pois].sum())
    share = lambda amounts: 100 * total(amounts) / max(requests, 1)
    return [
        int(requests),
        asked / max(requests, 1),
        int(total(accounts.impressions)),
        clicks,
        total(accounts.conversions),
        spend,
        spend / clicks if clicks > 0 else 0.0,
        total(accounts.surplus),
        share(accounts.impressions),
        *map(share, accounts.lost.values()),
    ]


def _caption(order: np.ndarray) -> str:
    rest = len(order) - MOST
    return f"The {MOST} of highest spend; {rest} more are in the sum." if rest > 0 else ""


def _landscapes(landscapes: Sequence[Landscape], titles: Sequence[str]) -> list[Block]:
    if not landscapes:
        return []
    text = Text(
        "Bid landscapes: one advertiser multiplies all its bids, the others keep theirs, and the "
        "requests in which it was for sale are served again. The vertical line is its present bid. "
        "Surplus takes the present bid for the value of a click: where it rises beyond the line, "
        "or to the left of it, another bid than the true value would pay."
    )
    columns = (
        "advertiser",
        "requests",
        "factor",
        "bid",
        "impressions, %",
        "clicks per 100 requests",
    )
    columns += ("price per click", "surplus per 100 requests")
    rows = [
        [titles[each.poi], each.requests, *row]
        for each in landscapes
        for row in zip(
            each.factor.tolist(),
            each.bid.tolist(),
            (100 * each.impressions).tolist(),
            (100 * each.clicks).tolist(),
            each.price.tolist(),
            (100 * each.surplus).tolist(),
            strict=True,
        )
    ]
    charts = Charts([_landscape(each, titles[each.poi]) for each in landscapes])
    return [text, charts, Folded("Bid landscapes as a table", [Table(columns, rows)])]


def _landscape(found: Landscape, title: str) -> Chart:
    """Clicks and price over the bid."""
    now = float(found.bid[np.argmin(np.abs(found.factor - 1))])

    def draw(axes: Axes) -> None:
        prices = axes.twinx()
        axes.plot(found.bid, 100 * found.clicks, "o-", label="clicks")
        has_price = found.clicks > 0
        prices.plot(
            found.bid[has_price], found.price[has_price], "s--", color=COLOURS[1], label="price"
        )
        axes.axvline(now, color=COLOURS[2], linewidth=1)
        axes.set(xlabel="bid, currency per click", ylabel="clicks per 100 requests", ylim=(0, None))
        prices.set(ylabel="price per click", ylim=(0, None))
        prices.grid(False)
        prices.spines["right"].set_visible(True)
        axes.plot([], [], "s--", color=COLOURS[1], label="price")

    return chart(f"{title}, {found.requests} requests", draw)
