"""The state of a training phase and the function that makes its train step."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from ega_jax.types import LossFn, Metrics, Params

Batch = Any


@struct.dataclass
class TrainState:
    """The state that a phase carries from step to step.

    Random keys are not part of it: each step derives its key from `step`, so training from a
    restored state gives the same results as training without a stop.
    """

    step: jax.Array  # [] int32, number of steps taken.
    params: Params  # Updated by the gradient.
    opt_state: optax.OptState
    variables: Any = ()  # Updated by the loss itself: code usage counts, Lagrange multipliers.

    @classmethod
    def create(
        cls, params: Params, optimizer: optax.GradientTransformation, variables: Any = ()
    ) -> "TrainState":
        """Returns the state before the first step."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            variables=variables,
        )


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, key: chex.PRNGKey
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a pure function that takes one gradient step.

    Args:
      loss_fn: `(params, variables, batch, key) -> (loss [], (metrics, new variables))`.
      optimizer: turns gradients into updates.
      key: the phase's random key; step `t` gets `fold_in(key, t)`.

    Returns:
      `step(state, batch) -> (state, metrics)`. The metrics gain `loss` and the global norms
      `grad_norm` (before clipping), `param_norm` (after the step) and `update_norm`. If the loss
      or the gradient is not finite, the state is returned unchanged.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        (loss, (metrics, variables)), grads = grad_fn(
            state.params, state.variables, batch, step_key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            variables=variables,
        )
        metrics = metrics | {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(new_state.params),
            "update_norm": optax.tree.norm(updates),
        }
        return keep_if(is_finite(metrics), new_state, state), metrics

    return step


def is_finite(metrics: Metrics) -> jax.Array:
    """Returns `[] bool`: whether a step's loss, and its gradient norm if reported, are finite."""
    return jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics.get("grad_norm", 0.0))


def keep_if(condition: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """Returns `new` if the scalar `condition` holds, else `old`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)
