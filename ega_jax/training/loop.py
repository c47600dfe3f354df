"""The training loop of every phase: tokenizers, generator, reward, alignment, payment."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp

from ega_jax.training.checkpoints import PhaseCheckpoints
from ega_jax.training.guard import Guard, NonFiniteLossError
from ega_jax.training.interrupt import Interrupted, StopRequest
from ega_jax.training.mesh import replicated
from ega_jax.training.metrics import Meter, MetricsWriter
from ega_jax.training.progress import ProgressReport
from ega_jax.training.state import Batch, TrainState
from ega_jax.types import Metrics

__all__ = ["Interrupted", "NonFiniteLossError", "Phase", "train"]


@dataclasses.dataclass(frozen=True)
class Phase:
    """What the loop needs to know of a phase.

    Attributes:
      name: of its folder under `workdir/checkpoints`, and of its metrics.
      init: the state before the first step; pure, it is traced.
      step: one step, usually from `make_train_step`; pure, it is traced.
      batches: endless; elements are dictionaries of arrays with a leading batch axis.
      num_steps: after which the phase is finished.
      checkpoint_every: steps; a phase is also saved when it ends or is interrupted.
      log_every: steps, and after the last one; a line is the mean over the steps since the last.
      evaluate: measures the state, which it must not keep: the next step consumes it.
      evaluate_every: steps, and after the last one; 0 never evaluates.
    """

    name: str
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    batches: grain.IterDataset
    num_steps: int
    checkpoint_every: int = 1000
    log_every: int = 50
    evaluate: Callable[[TrainState], dict[str, float]] | None = None
    evaluate_every: int = 0


def train(
    phase: Phase,
    *,
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """Runs a phase to its end, from its last checkpoint in the workdir if there is one.

    The final state does not depend on how often, or when, the run was killed and resumed. A
    phase that is already finished is restored and returned.

    Args:
      phase: what to train.
      workdir: where checkpoints, metrics and failures go; see `check_workdir`.
      config: JSON-like, saved with each checkpoint.
      mesh: from `data_mesh`; the state is replicated on it, batches are split over it.

    Returns:
      The state after `phase.num_steps` steps.

    Raises:
      Interrupted: SIGTERM or Ctrl-C came; the state is saved.
      NonFiniteLossError: a loss is not finite; the state before it and the batch are saved.
      CheckpointMismatchError: the checkpoint in the workdir is of another model.
    """
    run = _Run(phase, Path(workdir).absolute(), config, mesh)
    if run.step < phase.num_steps:
        with StopRequest() as stop:
            run.to_end(stop)
    return run.state


class _Run:
    """A phase under way in this process."""

    def __init__(
        self, phase: Phase, workdir: Path, config: Mapping[str, Any], mesh: jax.sharding.Mesh
    ):
        self._phase, self._workdir, self._config = phase, workdir, config
        self._checkpoints = PhaseCheckpoints(workdir / "checkpoints" / phase.name)
        self._batches = iter(phase.batches)
        self._start = time.perf_counter()
        self._guard = Guard(phase.step, mesh, workdir / "failures" / phase.name)
        self._meter = Meter()
        saved = self._checkpoints.latest_step()
        self.step = saved or 0

        init = jax.jit(lambda: jax.tree.map(jnp.copy, phase.init()), out_shardings=replicated(mesh))
        if saved is None:
            self.state = init()
        else:
            self.state, metadata = self._checkpoints.restore(
                saved, jax.eval_shape(init), self._batches
            )
            self._start -= metadata["elapsed_seconds"]

    def to_end(self, stop: StopRequest) -> None:
        """Trains until the phase is finished or a stop is requested, and saves."""
        name, num_steps = self._phase.name, self._phase.num_steps
        writer = MetricsWriter(self._workdir, name, self.step)
        with contextlib.closing(writer), ProgressReport(name, self.step, num_steps) as progress:
            while self.step < num_steps:
                self._advance()
                if self._due(self._phase.log_every) or self._due(self._phase.evaluate_every):
                    record = self._record()
                    writer.write(self.step, record)
                    progress.update(self.step, record)
                stopping = stop.agreed(self.step)
                if stopping or self.step == num_steps or self._due(self._phase.checkpoint_every):
                    self._save()
                if stopping:
                    raise Interrupted(
                        f"{name} stopped after step {self.step} of {num_steps}, saved in "
                        f"{self._workdir}; run the same command again to continue"
                    )

    def _advance(self) -> None:
        with self._meter.waiting():
            batch = next(self._batches)
        self.step += 1
        self.state, metrics = self._guard(self.step, self.state, batch)
        samples = len(next(iter(batch.values()))) * jax.process_count()
        self._meter.add(metrics, samples)

    def _record(self) -> dict[str, float]:
        """Measures the steps since the last record, and the state where that is due."""
        self._guard.settle(self.state)
        record = self._meter.summary()
        if self._phase.evaluate and self._due(self._phase.evaluate_every):
            with self._meter.paused():
                evaluated = self._phase.evaluate(self.state)
            record |= {f"eval/{key}": float(value) for key, value in evaluated.items()}
        return record | {"elapsed_seconds": self._elapsed()}

    def _save(self) -> None:
        self._guard.settle(self.state)
        with self._meter.paused():
            metadata = {"config": dict(self._config), "elapsed_seconds": self._elapsed()}
            self._checkpoints.save(self.step, self.state, self._batches, metadata)

    def _due(self, every: int) -> bool:
        last = self.step == self._phase.num_steps
        return every > 0 and (last or self.step % every == 0)

    def _elapsed(self) -> float:
        """Returns the seconds spent on the phase, those of earlier processes included."""
        return time.perf_counter() - self._start
