"""Means and intervals over seeds, and what the tables say of them."""

import csv

import numpy as np
import pytest

from ega_jax.evaluation.comparison import METRICS, lifts, rows_of, summary, write_tables


def run(**rpm):
    """Scores of one run: `rpm` by scorer, every other metric 1."""
    return {scorer: dict.fromkeys(METRICS, 1.0) | {"rpm": x} for scorer, x in rpm.items()}


PAIRED = {  # Seeds differ more than systems do.
    (0, "a"): run(model=10.0),
    (1, "a"): run(model=20.0),
    (2, "a"): run(model=5.0),
    (0, "b"): run(model=11.0),
    (1, "b"): run(model=24.0),
}
SCORES = {
    (0, "mca"): run(model=2.0, truth=1.0),
    (1, "mca"): run(model=4.0, truth=1.0),
    (0, "ega"): run(model=6.0, truth=3.0),
    (1, "ega"): {},
}


def test_the_interval_is_students():
    assert summary([2.0])[0] == 2.0
    assert np.isnan(summary([2.0])[1:]).all()
    mean, low, high = summary([1.0, 2.0, 4.5])
    reach = 4.302653 * np.std([1.0, 2.0, 4.5], ddof=1) / np.sqrt(3)
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - reach, 2.5 + reach), rel=1e-6)


def test_only_finished_runs_count():
    rows = {(r["system"], r["scorer"], r["metric"]): r for r in rows_of(SCORES, ("mca", "ega"))}
    assert rows["mca", "model", "rpm"]["mean"] == 3.0
    assert rows["mca", "model", "rpm"]["seeds"] == 2
    assert rows["ega", "model", "rpm"]["seeds"] == 1
    assert rows_of(SCORES, ("gr",)) == []


def test_lifts_are_over_the_first_system_of_a_table(tmp_path):
    write_tables(SCORES, {"both": ("mca", "ega"), "own": ("ega",)}, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    first, second = text.split("### own")
    assert "| ega | model | 1 | 6 (+200.0%)" in first
    assert "| ega | truth | 1 | 3 (+200.0%)" in first
    assert "| ega | truth | 1 | 3 |" in second
    with (tmp_path / "both.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * len(METRICS)
    with (tmp_path / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 3 * 2 * len(METRICS)
    assert {
        "system": "mca",
        "seed": "1",
        "scorer": "model",
        "metric": "rpm",
        "value": "4.0",
    } in runs
    assert (tmp_path / "tables.png").stat().st_size > 0


def test_without_a_tables_first_system_there_are_no_lifts(tmp_path):
    write_tables(SCORES, {"table": ("gr", "mca", "ega")}, tmp_path)
    assert "%" not in (tmp_path / "tables.md").read_text()


def test_lifts_are_taken_seed_by_seed(tmp_path):
    assert lifts(PAIRED, "b", "a", "model", "rpm") == pytest.approx([0.1, 0.2])
    write_tables(PAIRED, {"both": ("a", "b")}, tmp_path)
    reach = 12.7062047 * np.std([0.1, 0.2], ddof=1) / np.sqrt(2)
    assert f"(+15.0% ± {reach:.1%})" in (tmp_path / "tables.md").read_text()


def test_what_is_not_finite_and_a_first_system_without_revenue_are_shown(tmp_path):
    nothing = dict.fromkeys(METRICS, 0.0)
    endless = dict.fromkeys(METRICS, 1.0) | {"psi": float("nan")}
    scores = {(0, "a"): {"model": nothing}, (0, "b"): {"model": endless}}
    assert lifts(scores, "b", "a", "model", "rpm") == []
    write_tables(scores, {"both": ("a", "b")}, tmp_path)
    assert "| b | model | 1 | 1 | 1 | 1 | 1 | nan | 1 |" in (tmp_path / "tables.md").read_text()
