"""The learning rate by arithmetic, and what decays and what is clipped."""

import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer


def test_constant_after_a_linear_warmup():
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=0.4, warmup_steps=4), 10)
    rates = [float(rate(step)) for step in range(8)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4], atol=1e-7)


def test_cosine_from_the_peak_to_its_final_fraction():
    config = OptimizerConfig(
        learning_rate=1.0, schedule="cosine", warmup_steps=2, final_fraction=0.1
    )
    rate = learning_rate_schedule(config, 10)
    for step in range(2, 11):
        expected = 0.1 + 0.9 * (1 + np.cos(np.pi * (step - 2) / 8)) / 2
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5)


def test_no_warmup_starts_at_the_peak():
    assert learning_rate_schedule(OptimizerConfig(learning_rate=0.4), 10)(0) == np.float32(0.4)


def test_first_step_of_adam_is_the_learning_rate_against_the_sign():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1), 10)
    params = {"w": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    grads = {"w": jnp.full((2, 2), 5.0), "bias": jnp.asarray([-2.0, 3.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * np.ones((2, 2)), rtol=1e-4)
    np.testing.assert_allclose(updates["bias"], [0.1, -0.1], rtol=1e-4)


def test_decay_shrinks_matrices_only():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 10)
    params = {"w": jnp.full((2, 2), 4.0), "bias": jnp.full(2, 4.0)}
    grads = {"w": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], np.full((2, 2), -0.1 * 0.5 * 4.0), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def test_clipping_bounds_what_a_huge_gradient_leaves_in_the_moments():
    def steps_after_a_spike(clip_norm):
        config = OptimizerConfig(learning_rate=1.0, clip_norm=clip_norm)
        optimizer = make_optimizer(config, 10)
        params = {"bias": jnp.zeros(1)}
        state = optimizer.init(params)
        _, state = optimizer.update({"bias": jnp.full(1, 1e6)}, state, params)
        updates, _ = optimizer.update({"bias": jnp.full(1, 1.0)}, state, params)
        return float(updates["bias"][0])

    np.testing.assert_allclose(steps_after_a_spike(1.0), -1.0, rtol=1e-3)
    assert steps_after_a_spike(None) > -0.9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimizerConfig(schedule="linear"), "schedule 'linear' is not one of constant, cosine"),
        (OptimizerConfig(warmup_steps=10), "warmup_steps 10 leaves none of 10 steps"),
    ],
)
def test_bad_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(config, 10)
