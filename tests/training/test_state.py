"""The train step against hand-computed gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ega_jax.training.state import TrainState, make_train_step


def squared(params, variables, batch, key):
    """`mean (w x)^2`, whose gradient is `2 w mean x^2`; counts calls, reports its noise."""
    loss = jnp.mean((params["w"] * batch["x"]) ** 2)
    return loss, ({"noise": jax.random.normal(key)}, variables + 1)


def start(w=3.0):
    return TrainState.create({"w": jnp.asarray(w)}, optax.sgd(0.1), jnp.zeros((), jnp.int32))


STEP = jax.jit(make_train_step(squared, optax.sgd(0.1), jax.random.key(0)))
BATCH = {"x": jnp.asarray([1.0, 2.0])}


def test_step_is_gradient_descent_and_reports_its_norms():
    state, metrics = STEP(start(), BATCH)
    grad = 2 * 3.0 * (1 + 4) / 2
    assert int(state.step) == 1
    assert int(state.variables) == 1
    np.testing.assert_allclose(state.params["w"], 3.0 - 0.1 * grad, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 9 * (1 + 4) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], grad, rtol=1e-6)
    np.testing.assert_allclose(metrics["update_norm"], 0.1 * grad, rtol=1e-6)
    np.testing.assert_allclose(metrics["param_norm"], abs(3.0 - 0.1 * grad), rtol=1e-6)


def test_key_is_the_phase_key_folded_with_the_step():
    state, first = STEP(start(), BATCH)
    _, second = STEP(state, BATCH)
    for number, metrics in enumerate((first, second)):
        expected = jax.random.normal(jax.random.fold_in(jax.random.key(0), number))
        np.testing.assert_allclose(metrics["noise"], expected, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_loss_leaves_the_state_untouched(value):
    before = start()
    after, metrics = STEP(before, {"x": jnp.asarray([1.0, value])})
    assert not np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_non_finite_gradient_of_a_finite_loss_leaves_the_state_untouched():
    def root(params, variables, batch, key):
        del key
        return jnp.sqrt(params["w"]) + 0 * batch["x"].sum(), ({}, variables + 1)

    before = start(w=0.0)  # where the slope of the root is infinite.
    after, metrics = make_train_step(root, optax.sgd(0.1), jax.random.key(0))(before, BATCH)
    assert metrics["loss"] == 0
    assert not np.isfinite(metrics["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, after, before)
