"""The payment network against theory: the oracle's own figures, the command, and the full check."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import payment_theory
from experiments.payment_theory import RESERVE, Study


def integral_by_hand(clicks_of, bid, points=20_001):
    """Myerson's payment `b x(b) - integral x`, by the midpoint rule."""
    grid = (np.arange(points) + 0.5) * bid / points
    return bid * clicks_of(bid) - np.mean([clicks_of(b) for b in grid]) * bid


def test_a_step_costs_what_it_takes_to_win():
    study = Study("step", "threshold")
    for bids in np.float32([[0.9, 0.7, 0.2], [0.3, 0.4, 0.8], [0.2, 0.45, 0.1]]):
        found = jax.vmap(lambda ad, b=bids: study.myerson(jnp.asarray(b), ad))(jnp.arange(3))
        expected = np.zeros(3)
        if bids.max() >= RESERVE:
            expected[bids.argmax()] = max(RESERVE, np.sort(bids)[1])
        np.testing.assert_allclose(found, expected, atol=1 / payment_theory.FINE)


def test_smooth_clicks_and_their_integral():
    bids = np.float32([0.9, 0.5, 0.1])
    weights = bids**1.2 + 2.0
    np.testing.assert_allclose(
        payment_theory.smooth_allocation(jnp.asarray(bids)), weights / weights.sum(), rtol=1e-5
    )
    clicks_of = lambda b: (b**1.2 + 2.0) / (b**1.2 + 2.0 + weights[1:].sum())
    found = Study("smooth", "rate").myerson(jnp.asarray(bids), 0)
    np.testing.assert_allclose(found, integral_by_hand(clicks_of, 0.9), rtol=1e-3)


def test_the_network_sees_the_others_bids_and_not_its_own():
    outcome = Study("step", "threshold").outcome(jnp.array([0.2, 0.9, 0.7]), jnp.asarray(1))
    np.testing.assert_allclose(outcome.context.others, [0.7, 0.2])
    np.testing.assert_allclose([outcome.bid, outcome.clicks, outcome.context.scale], [0.9, 1, 1])


def test_batches_are_a_function_of_their_index():
    one, again, other = (payment_theory.draw(index) for index in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert (one["bids"] != other["bids"]).any()
    assert (one["reports"] >= 0).all()


def test_the_command_reports_every_network(tmp_path, monkeypatch, capsys):
    step = {"step": payment_theory.step_allocation}
    monkeypatch.setattr(payment_theory, "ALLOCATIONS", step)
    with flagsaver.flagsaver(workdir=str(tmp_path), payment_steps=2, profiles=256):
        payment_theory.main()
    results = json.loads((tmp_path / "results.json").read_text())["payment_theory"]
    assert set(results) == {"step-rate", "step-threshold"}
    for measured in results.values():
        assert all(np.isfinite(value) for value in measured.values())
        assert measured["regret"] > 0.01, "hardly trained"
        assert measured["myerson_revenue"] == pytest.approx(17 / 32, abs=0.005)
    assert (tmp_path / "prices.png").stat().st_size > 1000
    assert "step-threshold" in capsys.readouterr().out


@pytest.mark.slow
def test_the_networks_learn_what_theory_says(tmp_path):
    """Revenue of the optimal auction, and Myerson's price where clicks rise smoothly."""
    with flagsaver.flagsaver(workdir=str(tmp_path)):
        payment_theory.main()
    results = json.loads((tmp_path / "results.json").read_text())["payment_theory"]
    step, smooth = results["step-threshold"], results["smooth-rate"]
    assert step["revenue"] == pytest.approx(17 / 32, abs=0.005)
    assert step["regret"] < 0.002
    assert smooth["price_over_myerson"] == pytest.approx(1.0, abs=0.05)
    assert smooth["regret_over_utility"] < 0.01
