"""Weights of logged sessions by inverse propensity.

A log shows most often what its logger preferred, and a reward model trained on it is best there.
With weights `p ** -power`, where `p` is the propensity of the slate, unlikely slates count for
more; a power of 1 makes all slates of a request equally important. The weights are divided by their
mean over the training sessions (self-normalised), then clipped, then scaled to mean 1.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.setting import setting


@dataclasses.dataclass(frozen=True)
class WeightingSettings:
    """The settings of the group `reward` that define the weights."""

    # Power of the inverse propensity that weighs a session; 0: all sessions weigh the same.
    propensity_weight: float = setting(0.0, at_least=0, at_most=1)
    largest_weight: float = setting(20.0, at_least=1)  # Clip, in multiples of the mean weight.


@dataclasses.dataclass(frozen=True)
class SessionWeights:
    """A function from propensities to weights, and what it makes of the training sessions."""

    power: float
    log_mean: float  # Log of the mean of `p ** -power`.
    largest: float  # Clip, in multiples of this mean.
    mean: float = 1.0  # Of the clipped weights.
    effective_sessions: float = 0.0  # Kish's effective sample size.

    def __call__(self, propensity: jax.Array | np.ndarray) -> jax.Array:
        """Computes the weights of sessions; their mean over the training sessions is 1.

        Args:
          propensity: `[B, K]` probabilities whose product is that of the slate; 0 if not known.

        Returns:
          `[B]` float32, 0 where the propensity is not known.
        """
        log_inverse, known = log_inverse_propensity(propensity, self.power)
        clipped = jnp.minimum(log_inverse - self.log_mean, jnp.log(self.largest))
        return jnp.where(known, jnp.exp(clipped) / self.mean, 0.0)


def log_inverse_propensity(
    propensity: jax.Array | np.ndarray, power: float
) -> tuple[jax.Array, jax.Array]:
    """The log of `p ** -power` `[B]` of slates, and whether it is known `[B]`; else it is 0."""
    known = jnp.all(propensity > 0, axis=-1)
    logs = jnp.log(jnp.where(known[:, None], propensity, 1.0))
    return -power * logs.sum(axis=-1), known


def effective_size(weights: jax.Array | np.ndarray) -> jax.Array:
    """Kish's effective sample size of weights `[B]`: `(sum w)^2 / sum w^2`, 0 if all are 0.

    Examples:
      >>> float(effective_size(np.array([2.0, 2.0, 0.0]))), float(effective_size(np.zeros(3)))
      (2.0, 0.0)
    """
    squares = jnp.sum(weights**2)
    return jnp.where(squares > 0, jnp.sum(weights) ** 2 / jnp.where(squares > 0, squares, 1.0), 0.0)


def session_weights(
    propensities: Callable[[], Iterable[np.ndarray]], settings: WeightingSettings
) -> SessionWeights | None:
    """Fits weights to the training sessions, in two passes over some rows at a time.

    Args:
      propensities: starts a pass over the training sessions' propensities `[rows, K]`; see
        `SessionWeights.__call__`.
      settings: power and clip.

    Returns:
      The weights; None if no session's propensity is known.
    """
    power, log_sum, sessions = settings.propensity_weight, -np.inf, 0
    for part in propensities():
        log_inverse, known = map(np.asarray, log_inverse_propensity(part, power))
        sessions += int(known.sum())
        log_sum = np.logaddexp.reduce([log_sum, *log_inverse[known].astype(np.float64)])
    if not sessions:
        return None
    log_mean = float(log_sum - np.log(sessions))
    clipped = SessionWeights(power, log_mean, settings.largest_weight)
    total = square = 0.0
    for part in propensities():
        weights = np.asarray(clipped(part), np.float64)
        total, square = total + weights.sum(), square + (weights**2).sum()
    return dataclasses.replace(clipped, mean=total / sessions, effective_sessions=total**2 / square)
