"""Measures of probabilities against loops over pairs, rows and bins."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ega_jax.reward import calibration


def auc_by_pairs(predicted, outcome):
    """Counts every pair of a positive and a negative."""
    won = [
        1.0 if p > q else 0.5 if p == q else 0.0
        for p, happened in zip(predicted, outcome, strict=True)
        for q, other in zip(predicted, outcome, strict=True)
        if happened and not other
    ]
    return sum(won) / len(won) if won else 0.5


def log_loss_by_rows(predicted, outcome):
    losses = [-math.log(p if y else 1 - p) for p, y in zip(predicted, outcome, strict=True)]
    return sum(losses) / len(losses)


def ece_by_bins(predicted, outcome, num_bins):
    """Cuts the sorted rows into runs whose lengths differ by at most one, long ones first."""
    rows = sorted(zip(predicted, outcome, strict=True), key=lambda row: row[0])
    error, first = 0.0, 0
    for i in range(num_bins):
        size = len(rows) // num_bins + (i < len(rows) % num_bins)
        run = rows[first : first + size]
        error += abs(sum(p for p, _ in run) - sum(y for _, y in run)) / len(rows)
        first += size
    return error


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_auc_counts_ties_as_half(rows):
    predicted, outcome = map(np.array, zip(*rows, strict=True))
    expected = auc_by_pairs(predicted.tolist(), outcome.tolist())
    assert calibration.auc(predicted / 7, outcome) == pytest.approx(expected, abs=1e-12)


def random_rows(seed=0, shape=(40, 6)):
    rng = np.random.default_rng(seed)
    predicted = rng.beta(1, 8, shape).astype(np.float32)
    return predicted, rng.random(shape) < predicted**1.3, rng.random(shape) < 0.7


def test_log_loss_and_calibration_error_by_loops():
    predicted, outcome, where = random_rows()
    rows = predicted[where].tolist(), outcome[where].tolist()
    found = calibration.report(predicted, outcome, where)
    assert found["auc"] == pytest.approx(auc_by_pairs(*rows), abs=1e-12)
    assert found["logloss"] == pytest.approx(log_loss_by_rows(*rows), rel=1e-9)
    assert found["ece"] == pytest.approx(ece_by_bins(*rows, 20), rel=1e-9)
    assert found["ece"] > 0.005, "or the comparison means little"


def test_masked_is_removed():
    predicted, outcome, where = random_rows(seed=1)
    kept = calibration.report(predicted[where], outcome[where])
    predicted[~where], outcome[~where] = np.nan, True
    assert calibration.report(predicted, outcome, where) == kept


def test_log_loss_of_probabilities_is_the_expectation():
    predicted, true = np.array([0.2, 0.7]), np.array([0.3, 0.6])
    expected = -(0.3 * math.log(0.2) + 0.7 * math.log(0.8)) / 2
    expected -= (0.6 * math.log(0.7) + 0.4 * math.log(0.3)) / 2
    assert calibration.log_loss(predicted, true) == pytest.approx(expected)
    assert calibration.log_loss(true, true) < expected, "nothing beats the truth"


def test_the_curve_goes_up_and_keeps_every_row():
    predicted, outcome, where = random_rows(seed=2)
    curve = calibration.calibration_curve(predicted, outcome, where, num_bins=7)
    assert curve.count.sum() == where.sum()
    assert np.ptp(curve.count) <= 1
    assert np.all(np.diff(curve.predicted) > 0)
    mean = np.average(curve.observed, weights=curve.count)
    assert mean == pytest.approx(outcome[where].mean())


def test_a_perfect_and_a_shifted_forecast():
    outcome = np.tile([True, False, False, False], 100)
    right = np.full(400, 0.25)
    assert calibration.expected_calibration_error(right, outcome) == pytest.approx(0)
    assert calibration.expected_calibration_error(right + 0.1, outcome) == pytest.approx(0.1)


def test_nothing_to_measure():
    none = np.zeros(3, bool)
    assert calibration.report(np.ones(3) / 2, none, none) == {"auc": 0.5, "logloss": 0, "ece": 0}
    assert calibration.calibration_curve(np.ones(3) / 2, none, none).count.size == 0


def test_a_sure_error_costs_much_but_not_infinitely():
    loss = calibration.log_loss(np.array([0.0, 1.0]), np.array([True, False]))
    assert loss == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"predictions are \(3,\), outcomes \(2,\)"):
        calibration.auc(np.zeros(3), np.zeros(2))
