"""Regret by slot and by misreport, by loops over hand-made outcomes."""

import numpy as np
import pytest
from test_auction import D, K, random_judged

from ega_jax.evaluation.auction import HONEST, scores
from ega_jax.evaluation.misreports import MULTIPLES
from ega_jax.evaluation.regrets import gain_by_misreport, psi_by_slot, psi_interval

RULE = "gsp"


def test_the_psi_of_an_interval_is_that_of_the_scores():
    judged = random_judged()
    found = psi_interval(judged, RULE)
    assert found.value == pytest.approx(scores(judged, RULE)["psi"])
    assert found.low < found.value < found.high


def test_psi_by_slot_by_a_loop():
    judged = random_judged()
    for slot, found in enumerate(psi_by_slot(judged, RULE)):
        regret = honest = 0.0
        for d in range(D):
            if judged.where[d, slot]:
                paid = judged.charge[RULE][d, slot]
                gain = judged.clicks[d, slot] * (judged.value[d, slot] - paid)
                regret += max(gain.max() - gain[HONEST], 0.0)
                honest += gain[HONEST]
        assert found.value == pytest.approx(regret / honest)


def test_nobody_gains_by_the_truth():
    judged = random_judged()
    gain = gain_by_misreport(judged, RULE)
    assert gain.shape == MULTIPLES.shape
    assert gain[HONEST] == 0
    expected = total = 0.0
    for d, k in np.ndindex(D, K):
        if judged.where[d, k]:
            paid = judged.charge[RULE][d, k]
            utility = judged.clicks[d, k] * (judged.value[d, k] - paid)
            expected, total = expected + utility[10] - utility[HONEST], total + utility[HONEST]
    assert gain[10] == pytest.approx(expected / total)


def test_without_utility_there_is_no_psi():
    judged = random_judged(clicks=np.zeros_like(random_judged().clicks))
    assert psi_interval(judged, RULE) is None
    assert psi_by_slot(judged, RULE) == [None] * K
    assert np.isnan(gain_by_misreport(judged, RULE)).all()
