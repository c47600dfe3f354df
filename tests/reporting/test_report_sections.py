"""Sections: predicted against known clicks, warnings, support, settings, advertisers."""

import dataclasses

import numpy as np
import pytest

from ega_jax.evaluation.advertisers import accounts
from ega_jax.evaluation.landscape import Landscape
from ega_jax.evaluation.visits import Visits
from ega_jax.reporting.advertisers import advertisers_section
from ega_jax.reporting.blocks import Charts, Code, Folded, Table
from ega_jax.reporting.data import support_of, support_section
from ega_jax.reporting.repeat import flags_of, settings_section
from ega_jax.reporting.reward import comparisons, served_section

D, K = 400, 3


def visits(predicted=0.2, true=None, clicked=0.2, logged=1.0, seed=0):
    """Sessions in which POIs 0 and 1 are ads, and POI 2 is for sale and not shown."""
    rng = np.random.default_rng(seed)
    item = np.broadcast_to([0, 1, 5], (D, K))
    rate = predicted * rng.uniform(0.5, 1.5, (D, K))
    click = {"model": rate} | ({} if true is None else {"truth": rate * true / predicted})
    return Visits(
        session=np.arange(D),
        item=item,
        creative=item,
        is_ad=item < 2,
        bid=np.broadcast_to([2.0, 1.0, 0.0], (D, K)),
        price=np.broadcast_to([1.0, 0.5, 0.0], (D, K)),
        click=click,
        convert={name: np.full((D, K), 0.5) for name in click},
        is_logged=rng.random((D, K)) < logged,
        was_clicked=rng.random((D, K)) < clicked,
        ad=np.broadcast_to([0, 1, 2, -1], (D, 4)),
        ad_bid=np.broadcast_to([2.0, 1.0, 0.1, 0.0], (D, 4)),
        chance=np.full((D, K), 0.5),
        fate=np.broadcast_to([0, 0, 4, -1], (D, 4)).astype(np.int8),
    )


def test_predicted_and_true_clicks_by_sums():
    by_truth, by_log = comparisons(visits(true=0.1, logged=0.5))
    assert by_truth.ratio.value == pytest.approx(2.0)
    assert (by_truth.known_by, by_truth.slots) == ("truth", D * K)
    seen = visits(true=0.1, logged=0.5)
    expected = seen.click["model"][seen.is_logged].sum() / seen.was_clicked[seen.is_logged].sum()
    assert by_log.ratio.value == pytest.approx(expected)
    assert by_log.slots == seen.is_logged.sum()


def test_clicks_that_differ_are_warned_of():
    assert served_section({"ega": visits(true=0.2)}).warnings == []
    (warning, *_) = served_section({"ega": visits(true=0.1)}).warnings
    assert "ega: the reward model predicts 100 % more clicks" in warning
    assert "than truth has (ratio 2.00" in warning
    (warning,) = served_section({"ega": visits(clicked=0.4)}).warnings
    assert "fewer clicks" in warning


def test_a_log_with_too_few_clicks_confirms_nothing():
    seen = visits(logged=0.01)
    assert comparisons(seen)[0].ratio is None
    (warning,) = served_section({"ega": seen}).warnings
    assert "cannot confirm the predictions" in warning
    assert comparisons(visits(logged=0.0))[0].slots == 0


def test_support():
    found = support_of(visits(logged=0.5))
    assert found.slots == pytest.approx(0.5, abs=0.05)
    assert found.slates == pytest.approx(0.125, abs=0.05)
    assert found.overlap == pytest.approx((0.5, 0.25, 0.125))
    unknown = dataclasses.replace(visits(), chance=np.full((D, K), np.nan))
    assert support_of(unknown).overlap == ()
    assert support_section({"ega": unknown}).warnings == []
    rare = dataclasses.replace(visits(), chance=np.full((D, K), 0.1))
    assert "less than 1 % of the log" in support_section({"ega": rare}).warnings[0]


def test_advertisers_are_in_order_of_spend():
    totals = accounts(visits(), 6)
    titles = [f"POI {number}" for number in range(6)]
    flat = np.array([1.0, 2.0])
    shape = Landscape(0, 7, flat, flat, flat, flat / 10, flat / 2, flat)
    section = advertisers_section("ega", totals, [shape], titles, by_truth=False)
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == ["all", "POI 0", "POI 1", "POI 2"]
    row = dict(zip(table.columns, table.rows[1], strict=True))
    clicks = visits().click["model"][:, 0].sum()
    assert row["requests"] == row["impressions"] == D
    assert row["spend"] == pytest.approx(clicks)
    assert row["surplus"] == pytest.approx(clicks)
    assert row["price per click"] == pytest.approx(1.0)
    lost = dict(zip(table.columns, table.rows[3], strict=True))
    assert (lost["never generated, %"], lost["outranked, %"], lost["shown, %"]) == (100, 0, 0)
    charts = [block for block in section.blocks if isinstance(block, Charts)]
    assert "POI 0, 7 requests" in charts[0].charts[0].title


def test_settings_that_differ_are_listed_with_flags():
    base = {"seed": 0, "a.fractions": (0.7, 0.1), "a.path": ""}
    own = base | {"seed": 3, "a.fractions": (0.5, 0.2)}
    assert flags_of(own, base) == ["--config.seed=3", "--config.a.fractions='(0.5,0.2)'"]
    section = settings_section(base, own, {"ega": own, "gr": own | {"a.path": "x"}}, ["one", "two"])
    text, code, shared, of_systems = section.blocks
    assert isinstance(code, Code)
    assert code.text == "one\ntwo"
    assert isinstance(shared, Folded)
    assert [row[0] for row in shared.blocks[0].rows] == ["seed", "a.fractions"]
    assert of_systems.blocks[0].rows == [["gr: a.path", "x", "none"]]
    assert text.text
