"""Ratios with intervals, and what a log tells of the uniform policy."""

import dataclasses

import numpy as np
import pytest

from ega_jax.data.market.config import TINY
from ega_jax.evaluation.off_policy import NORMAL_95, inverse_propensity_ctr, ratio
from experiments.calibrations.propensities import uniform_ctr


def test_a_ratio_and_its_interval_by_hand():
    found = ratio(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    error = np.sqrt(2.0) / 4  # The residuals are -1 and 1.
    assert found == pytest.approx((1.0, 1 - NORMAL_95 * error, 1 + NORMAL_95 * error))


def test_intervals_cover_a_known_ratio():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        under = rng.uniform(0.5, 1.5, 300)
        found = ratio(under * rng.uniform(0, 4, 300), under)
        held += found.low <= 2.0 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_sessions_count_as_often_as_the_wanted_policy_shows_them():
    clicks, shown = np.array([1, 0, 2]), np.array([3, 4, 5])
    wanted, logged = np.array([0.2, 0.1, 0.4]), np.array([0.1, 0.1, 0.8])
    found = inverse_propensity_ctr(clicks, shown, wanted, logged)
    assert found.value == pytest.approx((2 * 1 + 0.5 * 2) / (2 * 3 + 4 + 0.5 * 5))


def test_a_log_of_much_exploration_tells_the_uniform_rate():
    config = dataclasses.replace(TINY, num_sessions=6000, explore=0.5)
    estimate, true = uniform_ctr(config)
    assert estimate.high - estimate.low < 0.3 * true
    assert abs(estimate.value - true) < 2 * (estimate.high - estimate.low)
