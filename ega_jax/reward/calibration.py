"""Metrics of predicted probabilities: ranking, likelihood, calibration.

Plain numpy on the host, for whole splits. All functions take predictions and outcomes of one
shape and a mask `where`. Without any prediction a metric is 0, and the AUC 1/2.
"""

import dataclasses

import numpy as np

FLOOR = 1e-7  # Predictions are clipped to [FLOOR, 1 - FLOOR], so that the log-loss is finite.


@dataclasses.dataclass(frozen=True)
class CalibrationCurve:
    """Mean predictions and outcomes in bins of about equal size, lowest predictions first."""

    predicted: np.ndarray  # [bins] mean prediction.
    observed: np.ndarray  # [bins] mean outcome.
    count: np.ndarray  # [bins] int, number of predictions.


def auc(predicted: np.ndarray, outcome: np.ndarray, where: np.ndarray | None = None) -> float:
    """Exact AUC: the probability that a positive ranks above a negative; ties count 1/2.

    Args:
      predicted: `[...]` scores on any scale.
      outcome: `[...]` bool or 0/1.
      where: `[...]` bool, the entries that count; all by default.

    Returns:
      A number in [0, 1]; 1/2 if all outcomes are equal.
    """
    predicted, outcome = _flat(predicted, outcome, where)
    positive = outcome > 0
    pairs = positive.sum() * (~positive).sum()
    if not pairs:
        return 0.5
    _, group, count = np.unique(predicted, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # Mean rank of each group of ties, from 1.
    least = positive.sum() * (positive.sum() + 1) / 2
    return float((rank[group[positive]].sum() - least) / pairs)


def log_loss(predicted: np.ndarray, outcome: np.ndarray, where: np.ndarray | None = None) -> float:
    """Mean negative log-likelihood of the outcomes in nats; arguments as in `auc`.

    If outcomes are probabilities, the result is the expected log-loss.
    """
    predicted, outcome = _flat(predicted, outcome, where)
    p = np.clip(predicted, FLOOR, 1 - FLOOR)
    return _mean(-(outcome * np.log(p) + (1 - outcome) * np.log1p(-p)))


def calibration_curve(
    predicted: np.ndarray,
    outcome: np.ndarray,
    where: np.ndarray | None = None,
    num_bins: int = 20,
) -> CalibrationCurve:
    """Groups sorted predictions into bins of about equal size; arguments as in `auc`.

    Equal predictions may be split between two bins, in input order. If there are fewer predictions
    than bins, each prediction forms one bin.
    """
    predicted, outcome = _flat(predicted, outcome, where)
    order = np.argsort(predicted, kind="stable")
    bins = [b for b in np.array_split(order, num_bins) if b.size]
    means = lambda values: np.array([values[b].mean() for b in bins])
    return CalibrationCurve(means(predicted), means(outcome), np.array([b.size for b in bins]))


def expected_calibration_error(
    predicted: np.ndarray,
    outcome: np.ndarray,
    where: np.ndarray | None = None,
    num_bins: int = 20,
) -> float:
    """Mean of |mean prediction - mean outcome| over bins, by size; see `calibration_curve`."""
    curve = calibration_curve(predicted, outcome, where, num_bins)
    error = np.abs(curve.predicted - curve.observed)
    return float(np.average(error, weights=curve.count)) if error.size else 0.0


def report(
    predicted: np.ndarray, outcome: np.ndarray, where: np.ndarray | None = None
) -> dict[str, float]:
    """All metrics of one prediction: `auc`, `logloss`, `ece`; arguments as in `auc`."""
    return {
        "auc": auc(predicted, outcome, where),
        "logloss": log_loss(predicted, outcome, where),
        "ece": expected_calibration_error(predicted, outcome, where),
    }


def _flat(predicted, outcome, where) -> tuple[np.ndarray, np.ndarray]:
    """The predictions and outcomes that count, as two float64 vectors."""
    predicted, outcome = np.asarray(predicted, np.float64), np.asarray(outcome, np.float64)
    if predicted.shape != outcome.shape:
        raise ValueError(f"predictions are {predicted.shape}, outcomes {outcome.shape}")
    where = np.ones(predicted.shape, bool) if where is None else np.asarray(where, bool)
    return predicted[where], outcome[where]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0
