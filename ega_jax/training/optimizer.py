"""The optimizer of a phase, from a few settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax

from ega_jax.types import Params

SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay; the defaults are the paper's (sec. 5.1)."""

    learning_rate: float = 2.4e-3  # peak, after the warm-up.
    schedule: str = "constant"  # one of SCHEDULES, after the warm-up.
    warmup_steps: int = 0  # linear from 0.
    final_fraction: float = 0.0  # of the peak, where the cosine ends.
    weight_decay: float = 0.0  # per unit of learning rate, on matrices only; 0 is plain Adam.
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float | None = None  # largest global norm of the gradient.


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, for a phase of `num_steps`.

    Raises:
      ValueError: the schedule is not one of `SCHEDULES`, or the warm-up leaves no step.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(f"schedule {config.schedule!r} is not one of {', '.join(SCHEDULES)}")
    remaining = num_steps - config.warmup_steps
    if remaining <= 0:
        raise ValueError(f"warmup_steps {config.warmup_steps} leaves none of {num_steps} steps")
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    if config.schedule == "constant":
        rest = optax.constant_schedule(config.learning_rate)
    else:
        rest = optax.cosine_decay_schedule(config.learning_rate, remaining, config.final_fraction)
    return optax.join_schedules([warmup, rest], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns the gradient transformation of a phase of `num_steps` steps."""
    adam = optax.adamw(
        learning_rate_schedule(config, num_steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=_matrices,
    )
    if config.clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def optimizer_of(settings: Mapping[str, Any]) -> optax.GradientTransformation:
    """The gradient transformation of a phase whose settings hold those of its optimizer.

    Args:
      settings: those named like a field of `OptimizerConfig` are taken, and `num_steps`.
    """
    names = {field.name for field in dataclasses.fields(OptimizerConfig)} & settings.keys()
    config = OptimizerConfig(**{name: settings[name] for name in names})
    return make_optimizer(config, settings["num_steps"])


def _matrices(params: Params) -> Params:
    """Marks the leaves that decay: all but biases and scales."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
