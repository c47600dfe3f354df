"""The optimizer of a phase: Adam with weight decay, clipping and a learning-rate schedule."""

import dataclasses

import jax
import optax

from ega_jax.errors import UserError
from ega_jax.setting import setting
from ega_jax.types import Params

SCHEDULES = ("constant", "cosine")
_DECAYS = 0.9, 0.999  # Adam's beta_1 and beta_2.


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay; by default plain Adam at the paper's learning rate."""

    learning_rate: float = setting(2.4e-3, above=0)  # The peak.
    schedule: str = setting("constant", choices=SCHEDULES)  # After the warm-up.
    warmup_steps: int = setting(0, at_least=0)  # Linear from 0 to the peak.
    final_fraction: float = setting(0.0, at_least=0, at_most=1)  # End of cosine / peak.
    weight_decay: float = setting(0.0, at_least=0)  # Times the learning rate; matrices only.
    clip_norm: float | None = setting(None, above=0)  # Largest global norm of the gradient.


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(OptimizerConfig):
    """The group `optimizer`: the optimizer of the generator's pre-training."""

    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 100
    final_fraction: float = 0.01
    clip_norm: float | None = 1.0


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, for a phase of `num_steps`.

    Raises:
      UserError: the schedule is not one of `SCHEDULES`, or the warm-up takes all the steps.
    """
    if config.schedule not in SCHEDULES:
        raise UserError(f"schedule {config.schedule!r} is not one of {', '.join(SCHEDULES)}")
    remaining = num_steps - config.warmup_steps
    if remaining <= 0:
        raise UserError(f"warmup_steps {config.warmup_steps} leaves none of {num_steps} steps")
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
        *_DECAYS,
        weight_decay=config.weight_decay,
        mask=_matrices,
    )
    if config.clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def _matrices(params: Params) -> Params:
    """Marks the leaves with weight decay: all but biases and scales."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
