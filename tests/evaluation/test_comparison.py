"""Tables of runs on several markets: means, intervals and what is left out."""

import csv

import numpy as np
import pytest

from ega_jax.evaluation import comparison
from ega_jax.evaluation.claims import COLUMNS as CLAIM_COLUMNS
from ega_jax.evaluation.comparison import (
    COLUMNS,
    FRONTIER_COLUMNS,
    METRICS,
    draw_frontier,
    frontier_rows,
    rows_of,
    write_tables,
)
from ega_jax.evaluation.records import LIFTS

LEVELS = [metric for metric in METRICS if metric not in LIFTS]


def record(system, market, value, lift=None, scorers=("model", "truth")):
    lifts = {} if lift is None else {"value_vs_mca": lift}
    point = {"value": value, "ctr_poi": 0.05, "ad_share": 0.6}
    return {
        "system": system,
        "market": market,
        "means": {scorer: dict.fromkeys(LEVELS, 1.0) | {"value": value} for scorer in scorers},
        "lifts": dict.fromkeys(scorers, lifts),
        "intervals": {scorer: {name: [-1.0, 9.0] for name in lifts} for scorer in scorers},
        "frontier": [{"lever": "alpha", "setting": 1.2} | dict.fromkeys(scorers, point)],
        "sessions": {"value": 4096, "rpm": 2048, "psi": 256},
    }


RECORDS = [
    record("mca", 0, 100.0),
    record("mca", 1, 50.0),
    record("ega", 0, 110.0, lift=10.0),
    record("ega", 1, 60.0, lift=20.0),
    record("ega", 2, 30.0),
    {"system": "ega", "market": 3, "failed": "the loss is nan at step 7"},
]


def cells(records, names):
    return {(r["system"], r["scorer"], r["metric"]): r for r in rows_of(records, names)}


def test_lifts_have_students_interval_over_their_markets():
    row = cells(RECORDS, ["ega"])["ega", "truth", "value_vs_mca"]
    reach = 12.7062047 * np.std([10.0, 20.0], ddof=1) / np.sqrt(2)
    assert (row["mean"], row["markets"], row["sessions"]) == (15.0, 2, 4096)
    assert (row["low"], row["high"]) == pytest.approx((15 - reach, 15 + reach))


def test_a_lift_of_one_market_has_the_interval_of_its_sessions():
    row = cells(RECORDS[:3], ["ega"])["ega", "truth", "value_vs_mca"]
    assert (row["mean"], row["low"], row["high"], row["markets"]) == (10.0, -1.0, 9.0, 1)


def test_levels_are_means_over_all_markets_that_did_not_fail():
    found = cells(RECORDS, ["mca", "ega", "gr"])
    assert found["mca", "model", "value"]["mean"] == 75.0
    assert found["ega", "model", "value"]["markets"] == 3
    assert found["ega", "model", "rpm"]["sessions"] == 2048
    assert found["ega", "model", "psi"]["sessions"] == 256
    assert ("gr", "model", "value") not in found
    assert np.isnan(cells(RECORDS[:1], ["mca"])["mca", "truth", "rpm"]["low"])


def test_what_is_undefined_in_a_market_has_no_mean(tmp_path):
    """A market where the frontier does not reach the clicks must not drop out."""
    undefined = record("ega", 1, 80.0)
    undefined["lifts"]["truth"] = {"value_vs_mca": None}
    row = cells([RECORDS[2], undefined], ["ega"])["ega", "truth", "value_vs_mca"]
    assert row["markets"] == 2
    assert np.isnan([row["mean"], row["low"], row["high"]]).all()
    write_tables([RECORDS[2], undefined], {"own": ("ega",)}, tmp_path, {})
    assert "| ega | truth | 2 | undefined |" in (tmp_path / "tables.md").read_text()
    row = cells([RECORDS[2], record("ega", 1, 80.0)], ["ega"])["ega", "truth", "value_vs_mca"]
    assert (row["mean"], row["markets"]) == (10.0, 1), "it was not compared in the other"


def test_an_interval_without_a_lower_end(tmp_path):
    low = record("ega", 0, 80.0, lift=5.0)
    low["intervals"]["truth"]["value_vs_mca"] = [None, 9.0]
    row = cells([low], ["ega"])["ega", "truth", "value_vs_mca"]
    assert (row["low"], row["high"]) == (-np.inf, 9.0)
    write_tables([low], {"own": ("ega",)}, tmp_path, {})
    assert "+5.0 % (-inf to +9.0)" in (tmp_path / "tables.md").read_text()


def test_points_are_by_the_truth_if_it_is_known():
    rows = frontier_rows([record("ega", 0, 5.0), record("gr", 0, 6.0, scorers=["model"])], ["gr"])
    assert [(row["system"], row["value"], row["market"]) for row in rows] == [("gr", 6.0, 0)]


def test_tables_and_figures_are_written(tmp_path):
    write_tables(RECORDS, {"table2": ("mca", "gr", "ega"), "own": ("ega",)}, tmp_path, {})
    with (tmp_path / "table2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * (2 * len(LEVELS) + 1)
    with (tmp_path / "frontier.csv").open() as file:
        points = list(csv.DictReader(file))
    assert tuple(points[0]) == FRONTIER_COLUMNS
    assert len(points) == 5
    with (tmp_path / "claims.csv").open() as file:
        claims = list(csv.DictReader(file))
    assert tuple(claims[0]) == CLAIM_COLUMNS
    text = (tmp_path / "tables.md").read_text()
    assert "| ega over mca | rpm | +19.7 % | +0.0 % (" in text
    assert "| ega | truth | 2 | +15.0 % (" in text
    assert "- ega, market 3: the loss is nan at step 7" in text
    for name in ("lifts.png", "frontier.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_frontier_of_a_market_has_its_ceilings(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "save_figure", lambda figure, path: drawn.append(figure))
    points = frontier_rows(RECORDS, ["mca", "ega"])
    ceilings = {1: {"attainable": 90.0, "visible": 70.0}}
    draw_frontier(points, tmp_path / "frontier.png", ceilings)
    lines = [{line.get_label(): line for line in axes.lines} for axes in drawn[0].axes]
    assert ["ceiling, attainable" in panel for panel in lines] == [False, True, False]
    assert list(lines[1]["ceiling, visible"].get_ydata()) == [70.0, 70.0]


def test_without_runs_tables_are_empty(tmp_path):
    write_tables([], {"table2": ("mca",)}, tmp_path, {})
    assert (tmp_path / "table2.csv").read_text().strip() == ",".join(COLUMNS)
