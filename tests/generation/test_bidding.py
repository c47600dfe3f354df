"""Token weights and allocation probabilities (21)-(22), by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.generation.bidding import allocation_log_probs, log_weights

LOGITS = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
BIDS = np.array([3.0, 0.0, 0.5, 1.0], np.float32)
ALL = np.ones(4, bool)
SCORE = jax.jit(allocation_log_probs)


def test_weight_is_a_power_of_the_bid_over_a_floor():
    expected = [3.0**1.2 + 2.0, 2.0, 0.5**1.2 + 2.0, 1.0 + 2.0]
    np.testing.assert_allclose(jnp.exp(log_weights(BIDS, 1.2, 2.0)), expected, rtol=1e-6)


@pytest.mark.parametrize("beta", [1e-6, 0.1, 2.0])
def test_a_bid_of_nothing_weighs_the_floor_at_any_alpha(beta):
    weight = jnp.exp(log_weights(np.array([0.0, 1.0], np.float32), 0.01, beta))
    np.testing.assert_allclose(weight, [beta, 1 + beta], rtol=3e-6)
    assert jnp.isfinite(log_weights(jnp.zeros(1), 0.01, 0.0)).all()


@pytest.mark.parametrize("valid", [ALL, np.array([True, True, False, True])])
def test_probabilities_by_hand(valid):
    score = [(b**1.2 + 2.0) * np.exp(x) for b, x in zip(BIDS, LOGITS, strict=True)]
    total = sum(s for s, v in zip(score, valid, strict=True) if v)
    log_z = SCORE(LOGITS, BIDS, valid, 1.2, 2.0)
    np.testing.assert_allclose(log_z[valid], np.log(np.array(score)[valid] / total), rtol=1e-5)
    assert (log_z[~valid] < -1e29).all()


def test_nothing_valid_is_finite_and_impossible():
    log_z = SCORE(LOGITS, BIDS, ~ALL, 1.2, 2.0)
    assert np.isfinite(log_z).all()
    assert (log_z < -1e29).all()


def test_without_floor_an_unpaid_token_loses_to_any_paid_one():
    log_z = SCORE(LOGITS, BIDS, ALL, 1.2, 0.0)
    assert np.isfinite(log_z).all()
    assert log_z[1] < -80
    np.testing.assert_allclose(np.exp(log_z).sum(), 1.0, rtol=1e-5)


def test_without_bids_and_floor_the_logits_decide():
    log_z = SCORE(LOGITS, np.zeros(4, np.float32), ALL, 1.2, 0.0)
    np.testing.assert_allclose(log_z, jax.nn.log_softmax(LOGITS), atol=1e-5)


def test_a_shift_of_logits_or_a_scale_of_weights_changes_nothing():
    plain = SCORE(LOGITS, BIDS, ALL, 1.0, 2.0)
    np.testing.assert_allclose(SCORE(LOGITS + 70.0, BIDS, ALL, 1.0, 2.0), plain, atol=2e-5)
    np.testing.assert_allclose(SCORE(LOGITS, 5 * BIDS, ALL, 1.0, 10.0), plain, atol=1e-5)


def test_tokens_that_are_not_valid_carry_no_weight():
    valid = np.array([True, False, True, True])
    other_logits, other_bids = np.where(valid, LOGITS, 50.0), np.where(valid, BIDS, 1e6)
    np.testing.assert_allclose(
        SCORE(other_logits.astype(np.float32), other_bids.astype(np.float32), valid, 1.2, 2.0),
        SCORE(LOGITS, BIDS, valid, 1.2, 2.0),
        rtol=1e-6,
    )


def test_a_higher_bid_raises_its_token_alone():
    before, after = (SCORE(LOGITS, b, ALL, 1.2, 2.0) for b in (BIDS, BIDS + np.eye(4)[1]))
    assert after[1] > before[1]
    assert (np.delete(after, 1) < np.delete(before, 1)).all()


def test_gradients_are_finite_with_nothing_bid_or_valid():
    def total(logits, bids, valid):
        return jnp.sum(jnp.where(valid, allocation_log_probs(logits, bids, valid, 1.2, 0.0), 0.0))

    for valid in (ALL, ~ALL):
        grads = jax.grad(total, argnums=(0, 1))(LOGITS, np.zeros(4, np.float32), valid)
        assert all(np.isfinite(g).all() for g in grads)


def test_leading_axes_are_rows_and_new_settings_do_not_retrace():
    score = jax.jit(chex.assert_max_traces(allocation_log_probs, n=1))
    rows = np.stack([LOGITS, LOGITS[::-1]])
    bids, valid = np.stack([BIDS, BIDS]), np.stack([ALL, ALL])
    for alpha, beta in ((1.2, 2.0), (0.5, 0.1)):
        together = score(rows, bids, valid, alpha, beta)
        for row, found in zip(rows, together, strict=True):
            np.testing.assert_allclose(found, SCORE(row, BIDS, ALL, alpha, beta), rtol=1e-5)


def test_half_precision_logits_give_float32():
    log_z = SCORE(LOGITS.astype(jnp.bfloat16), BIDS, ALL, 1.2, 2.0)
    assert log_z.dtype == jnp.float32
    np.testing.assert_allclose(log_z, SCORE(LOGITS, BIDS, ALL, 1.2, 2.0), atol=2e-2)


@pytest.mark.parametrize("alpha", [0.1, 1.2, 5.0, 600.0])
def test_no_bid_and_no_alpha_leave_what_floats_hold(alpha):
    """A power beyond float32 used to make the whole slate NaN; below, all bids were one."""
    bids = jnp.array([0.0, 1e-12, 1e-9, 1.0, 84.0, 1e9, 1e38])
    for beta in (0.0, 2.0):
        found = allocation_log_probs(jnp.zeros(7), bids, jnp.ones(7, bool), alpha, beta)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(np.exp(np.float64(found)).sum(), 1, rtol=1e-5)
        rises = np.diff(found) >= 0 if beta else np.diff(found) > 0
        assert rises.all()
