"""Charts of what an ad gets at other bids, which the browser draws."""

from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Span
from bokeh.plotting import figure

from ega_jax.playground.bid_curve import BidCurve

COLOURS = {"clicks": "#0b7285", "price": "#c77700", "myerson": "#5f3dc4", "bid": "#9fb3bc"}
LABELS = {"clicks": "click rate", "price": "price", "myerson": "Myerson's price", "bid": "bid"}
TOOLTIPS = [("bid", "@bid{0.00}"), ("click rate", "@clicks{0.000}")]
TOOLTIPS += [("price", "@price{0.00}"), ("Myerson's price", "@myerson{0.00}")]


class CurveCharts:
    """Two charts over an ad's bid: its click rate; its price, Myerson's price and the bid itself.

    Attributes:
      clicks: the chart of the click rate.
      prices: the chart of prices.
    """

    def __init__(self):
        """Makes empty charts."""
        self._source: Any = ColumnDataSource()
        self._marks: list[Span] = []
        self.show(None, 0.0)
        self.clicks = self._chart("click rate", ["clicks"])
        self.prices = self._chart("currency per click", ["bid", "price", "myerson"])
        self.prices.x_range = self.clicks.x_range

    def show(self, curve: BidCurve | None, bid: float) -> None:
        """Draws a curve and marks the present bid; clears the charts without a curve."""
        if curve is None:
            self._source.data = {column: np.zeros(0) for column in COLOURS}
        else:
            priced = lambda price: np.where(curve.clicks > 0, price, np.nan)  # Gaps elsewhere.
            prices = {"price": priced(curve.price), "myerson": priced(curve.myerson)}
            self._source.data = {"bid": curve.bid, "clicks": curve.clicks} | prices
        for mark in self._marks:
            mark.location = bid

    def _chart(self, label: str, columns: list[str]) -> Any:
        """A chart of some columns, with a mark at the present bid."""
        chart: Any = figure(
            height=270, sizing_mode="stretch_width", min_width=200, toolbar_location=None, tools=""
        )
        chart.xaxis.axis_label, chart.yaxis.axis_label = "bid, currency per click", label
        chart.axis.axis_label_text_font_style = "normal"
        chart.axis.axis_label_text_font_size = "13px"
        chart.axis.major_label_text_font_size = "12px"
        chart.grid.grid_line_color = "#e7edf0"
        chart.outline_line_color = None
        chart.y_range.start = 0
        lines = [self._line(chart, column) for column in columns]
        chart.legend.visible = len(columns) > 1
        chart.legend.location = "top_left"
        chart.legend.label_text_font_size = "12px"
        chart.legend.background_fill_alpha = 0.8
        chart.add_tools(HoverTool(tooltips=TOOLTIPS, renderers=lines[-1:], mode="vline"))
        self._marks.append(Span(dimension="height", line_color="#1d2b33", line_dash="dashed"))
        chart.add_layout(self._marks[-1])
        return chart

    def _line(self, chart: Any, column: str) -> Any:
        style = {"color": COLOURS[column], "source": self._source}
        if column != "bid":
            chart.scatter("bid", column, size=5, **style)
        return chart.line("bid", column, line_width=2, legend_label=LABELS[column], **style)
