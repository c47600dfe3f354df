"""The settings that training phases share: batches, steps, optimizer, checkpoints."""

import dataclasses
from collections.abc import Iterator

import optax

from ega_jax.setting import NOTHING, setting
from ega_jax.training.optimizer import SCHEDULES, OptimizerConfig, make_optimizer


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """A phase's batch size and number of steps, and how often it saves and logs."""

    batch_size: int = setting(128, at_least=1)  # B
    num_steps: int = setting(3000, at_least=1)
    checkpoint_every: int = setting(1000, at_least=1, binds=NOTHING)  # Steps.
    log_every: int = setting(50, at_least=1, binds=NOTHING)  # Steps.


@dataclasses.dataclass(frozen=True)
class StepSettings(LoopSettings):
    """A phase with a constant learning rate."""

    learning_rate: float = setting(1e-3, above=0)
    clip_norm: float | None = setting(1.0, above=0)  # Largest global norm of the gradient.

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer's config."""
        return OptimizerConfig(self.learning_rate, clip_norm=self.clip_norm)

    def optimizer(self) -> optax.GradientTransformation:
        """Returns the optimizer for `num_steps` steps."""
        return make_optimizer(self.optimizer_config, self.num_steps)


@dataclasses.dataclass(frozen=True)
class ScheduledSettings(StepSettings):
    """A phase with a learning-rate schedule, by default cosine decay."""

    schedule: str = setting("cosine", choices=SCHEDULES)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer's config."""
        return dataclasses.replace(super().optimizer_config, schedule=self.schedule)


@dataclasses.dataclass(frozen=True)
class LoggedSettings(ScheduledSettings):
    """A phase that is trained on the feedback in an ad log; see `ega_jax.phases.logged`."""

    learning_rate: float = 3e-3
    warmup_steps: int = setting(50, at_least=0)  # Linear from 0 to the peak.
    weight_decay: float = setting(0.3, at_least=0)  # Times the learning rate; matrices only.
    evaluate_every: int = setting(1000, at_least=0, binds=NOTHING)  # Steps; 0: never.

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer's config."""
        return dataclasses.replace(
            super().optimizer_config, warmup_steps=self.warmup_steps, weight_decay=self.weight_decay
        )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields a problem if the warm-up takes all the steps."""
        yield from warmup_problem(self.warmup_steps, self.num_steps)


def warmup_problem(
    warmup_steps: int, num_steps: int, name: str = "warmup_steps"
) -> Iterator[tuple[str, str]]:
    """Yields a problem if the warm-up takes all the steps; see `ega_jax.setting.Tree`."""
    if warmup_steps >= num_steps:
        yield name, f"{warmup_steps} warm-up steps leave none of {num_steps} steps"
