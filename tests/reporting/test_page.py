"""A page shows what it is given, escaped, and refers to nothing outside of itself."""

import re

import numpy as np
import pytest

from ega_jax.evaluation.off_policy import Ratio
from ega_jax.reporting.blocks import (
    Charts,
    Code,
    Folded,
    KeyFigure,
    Part,
    Report,
    Section,
    Table,
    Text,
    Warned,
)
from ega_jax.reporting.charts import by_slot, chart, lines
from ega_jax.reporting.page import html_of, interval, shown

REFERENCES = r"https?:|//|@import|<script|<iframe|<img|<object|\ssrc=|url\((?!#)"


def page(*blocks):
    section = Section("Bids & prices", blocks)
    figures = [KeyFigure("RPM", Ratio(3.0, 2.0, 4.0), "a note")]
    return html_of(Report("Title", "Subtitle", figures, [Part("One", [section])]))


def test_every_kind_of_block_is_shown():
    table = Table(("name", "amount"), [["ad", 0.25], ["none", None]], "A caption")
    figure = by_slot("Rates", {"seen": [0.2, 0.1], "true": [0.3, np.nan]}, "rate")
    html = page(Text("words"), table, Charts([figure]), Code("a \\\n b"), Folded("More", [table]))
    for text in ("Bids &amp; prices", "words", "A caption", "0.25", "Rates", "a \\\n b", "More"):
        assert text in html
    assert html.count("A caption</caption>") == 2
    assert html.count("<svg") == 1
    assert "2 to 4" in html


def test_warnings_stand_at_the_top_and_in_their_section():
    html = page(Warned("beware"))
    assert html.count('<p class="warning">beware</p>') == 2
    assert html.index("beware") < html.index("<nav")


def test_what_comes_from_data_is_escaped():
    html = page(Table(("x",), [["<script>alert(1)</script>"]]), Text("<b>"))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;" in html


def test_a_page_refers_to_nothing():
    curve = {"a & b": ([0, 1], [1, 2]), "c": ([0, 1], [2, 2])}
    figures = [lines("L", curve, "x"), chart("C", lambda axes: axes.bar([0], [1]))]
    html = page(Charts(figures))
    assert re.findall(REFERENCES, html) == []
    assert set(re.findall(r'href="([^"]*)"', html)) == {"data:,", "#s1-1"} | set(
        re.findall(r'xlink:href="(#\w+)"', html)
    )
    assert "a &amp; b" in html


def test_charts_are_the_same_each_time():
    draw = lambda: lines("L", {"a": ([0, 1], [1, 2])}, "x").svg
    assert draw() == draw()
    assert "<text" in draw(), "text stays text"


@pytest.mark.parametrize(
    ("cell", "text", "of"),
    [
        (Ratio(0.5, 0.25, 1.0), "0.5", "0.25 to 1"),
        (Ratio(0.5, float("nan"), 1.0), "0.5", ""),
        (12_345, "12,345", ""),
        ("text", "text", ""),
    ],
)
def test_cells(cell, text, of):
    assert (shown(cell), interval(cell)) == (text, of)
