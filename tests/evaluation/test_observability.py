"""Features of ads, linear recall and the value that it keeps."""

import dataclasses

import numpy as np
import pytest

from ega_jax.evaluation.observability import Ads, linear_scores, network_r2, value_kept

D, A = 40, 12


def random_ads(seed, slope):
    """Ads whose utility is linear in the first view and independent of the second."""
    rng = np.random.default_rng(seed)
    known, noise = rng.normal(size=(2, D, A, 3)).astype(np.float32)
    where = np.arange(A) < rng.integers(4, A + 1, size=(D, 1))
    value = np.where(where, rng.exponential(size=(D, A)), 0.0)
    views = {"history": known, "context": noise}
    return Ads(views, known @ np.array(slope, np.float32) + 0.5, value, where)


def test_a_linear_model_finds_a_linear_utility():
    fitted, other = random_ads(0, [1, -2, 0]), random_ads(1, [1, -2, 0])
    found = linear_scores(fitted, "history", other)
    expected = other.features["history"] @ np.array([1, -2, 0])
    centred = lambda x: x - x.mean()
    np.testing.assert_allclose(centred(found), centred(expected), atol=0.05)
    blind = linear_scores(fitted, "context", other)
    assert abs(np.corrcoef(blind[other.where], other.utility[other.where])[0, 1]) < 0.25


def test_a_network_explains_what_can_be_known():
    fitted, other = random_ads(0, [1, -2, 0]), random_ads(1, [1, -2, 0])
    assert network_r2(fitted, "history", other) > 0.5
    assert network_r2(fitted, "context", other) < 0.2


def test_the_value_kept_against_a_loop():
    ads, shown = random_ads(2, [1, 0, 0]), 2
    score = np.random.default_rng(3).normal(size=(D, A))
    found = value_kept(score, ads, (0.25, 0.5, 1.0), shown)
    for share in (0.25, 0.5, 1.0):
        kept = total = 0.0
        for row in range(D):
            there = np.flatnonzero(ads.where[row])
            best = sorted(there, key=lambda n: -score[row, n])[: int(np.ceil(share * len(there)))]
            kept += sum(sorted(ads.value[row, best])[::-1][:shown])
            total += sum(sorted(ads.value[row, there])[::-1][:shown])
        assert found[f"{share:g}"] == pytest.approx(kept / total)
    assert found["1"] == 1
    exact = value_kept(ads.value, dataclasses.replace(ads), (0.5,), shown)
    assert exact["0.5"] > found["0.5"]
