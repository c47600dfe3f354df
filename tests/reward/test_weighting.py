"""Weights by inverse propensity: those made by hand, the clip, and what cannot be weighed."""

import numpy as np
import pytest

from ega_jax.reward.weighting import WeightingSettings, effective_size, session_weights

SLATES = np.float32([[0.5, 0.5], [0.1, 1.0], [0.2, 0.1], [1.0, 1.0]])  # .25, .1, .02, 1


def weights_of(power, largest, parts):
    return session_weights(lambda: iter(parts), WeightingSettings(power, largest))


@pytest.mark.parametrize("parts", [[SLATES], [SLATES[:1], SLATES[1:]]])
def test_weights_are_inverse_propensities_over_their_mean(parts):
    weights = weights_of(1.0, 100.0, parts)
    inverse = np.array([4.0, 10.0, 50.0, 1.0])
    expected = inverse / inverse.mean()
    np.testing.assert_allclose(weights(SLATES), expected, rtol=1e-5)
    assert weights.effective_sessions == pytest.approx(65.0**2 / (16 + 100 + 2500 + 1), rel=1e-5)


def test_a_power_tempers_them():
    weights = weights_of(0.5, 100.0, [SLATES])
    inverse = np.array([4.0, 10.0, 50.0, 1.0]) ** 0.5
    np.testing.assert_allclose(weights(SLATES), inverse / inverse.mean(), rtol=1e-5)


def test_the_largest_are_clipped_and_the_mean_is_1_again():
    weights = weights_of(1.0, 2.0, [SLATES])
    clipped = np.minimum(np.array([4.0, 10.0, 50.0, 1.0]) / 16.25, 2.0)
    np.testing.assert_allclose(weights(SLATES), clipped / clipped.mean(), rtol=1e-5)
    assert np.mean(weights(SLATES)) == pytest.approx(1.0, rel=1e-5)
    size = clipped.sum() ** 2 / (clipped**2).sum()
    assert weights.effective_sessions == pytest.approx(size, rel=1e-5)
    assert float(effective_size(clipped)) == pytest.approx(size, rel=1e-5)


def test_what_is_not_known_has_no_weight():
    with_unknown = np.concatenate([SLATES, np.zeros((2, 2), np.float32)])
    weights = weights_of(1.0, 100.0, [with_unknown])
    np.testing.assert_allclose(weights(SLATES), weights_of(1.0, 100.0, [SLATES])(SLATES), rtol=1e-5)
    assert (np.asarray(weights(with_unknown))[4:] == 0).all()
    assert weights_of(1.0, 100.0, [with_unknown[4:]]) is None


def test_tiny_propensities_do_not_overflow():
    tiny = np.full((3, 10), 1e-6, np.float32)  # 1e-60 a slate: not a float32.
    tiny[1] = 1e-5
    found = np.asarray(weights_of(1.0, 20.0, [tiny])(tiny))
    np.testing.assert_allclose(found, np.array([1.5, 0.0, 1.5]), atol=1e-5)
