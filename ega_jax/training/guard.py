"""Stopping at a loss that is not finite, with the state and batch saved for debugging."""

import collections
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.training.checkpoints import save_tree
from ega_jax.training.files import replacing
from ega_jax.training.mesh import replicated, shard_batch
from ega_jax.training.state import TrainState, is_finite, keep_if
from ega_jax.types import Metrics

LAG = 8  # Steps that the host may dispatch before it reads a loss.


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient is not finite; the state before that step and its batch are saved."""


class Guard:
    """Runs training steps and stops after one that is not finite.

    Reading a loss waits for the device, so the host reads it `LAG` steps later. Until then the
    flag `healthy` stays on the device: once it is false, later steps leave the state unchanged.
    """

    def __init__(
        self,
        step: Callable[..., tuple[TrainState, Metrics]],
        mesh: jax.sharding.Mesh,
        failures: Path,
    ):
        """Compiles `step(state, batch)`; a failed step is saved in a folder under `failures`."""
        self._mesh = mesh
        self._failures = failures
        self._healthy = jax.device_put(jnp.asarray(True), replicated(mesh))
        self._in_flight: collections.deque[tuple[int, dict[str, np.ndarray], jax.Array]] = (
            collections.deque()
        )

        def guarded(
            state: TrainState, healthy: jax.Array, batch: dict[str, jax.Array]
        ) -> tuple[TrainState, jax.Array, Metrics]:
            new_state, metrics = step(state, batch)
            healthy = healthy & is_finite(metrics)
            return keep_if(healthy, new_state, state), healthy, metrics

        self._step = jax.jit(guarded, donate_argnums=0, out_shardings=replicated(mesh))

    def __call__(
        self, number: int, state: TrainState, batch: dict[str, np.ndarray]
    ) -> tuple[TrainState, Metrics]:
        """Dispatches step `number`; the given state's buffers are donated.

        Raises:
          NonFiniteLossError: a step at least `LAG` before this one failed.
        """
        sharded = shard_batch(batch, self._mesh)
        state, self._healthy, metrics = self._step(state, self._healthy, sharded)
        self._in_flight.append((number, batch, self._healthy))
        self.settle(state, lag=LAG)
        return state, metrics

    def settle(self, state: TrainState, lag: int = 0) -> None:
        """Waits for all steps but the last `lag`, and checks them.

        Raises:
          NonFiniteLossError: one of them failed.
        """
        while len(self._in_flight) > lag:
            number, batch, healthy = self._in_flight.popleft()
            if not healthy:
                folder = self._save_failure(number, state, batch)
                raise NonFiniteLossError(
                    f"the loss or its gradient is not finite at step {number}; the state before "
                    f"the step and its batch are saved in {folder}"
                )

    def _save_failure(self, number: int, state: TrainState, batch: dict[str, np.ndarray]) -> Path:
        folder = self._failures / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"batch-{jax.process_index()}.npz"
        with replacing(path) as written:
            np.savez(written, allow_pickle=False, **batch)
        save_tree(folder / "state", state, {"step": number - 1})
        return folder
