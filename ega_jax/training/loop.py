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
    """A training phase, as the loop runs it.

    Attributes:
      name: names its folder under `workdir/checkpoints` and its metrics file.
      init: returns the state before the first step; pure, since it is traced.
      step: takes one step, usually from `make_train_step`; pure, since it is traced.
      batches: an endless dataset of dictionaries of arrays with a leading batch axis.
      num_steps: the step after which the phase is finished.
      checkpoint_every: steps between checkpoints; a phase is also saved when it ends or is
        interrupted.
      log_every: steps between log lines; the last step is logged too. A line holds the means over
        the steps since the previous line.
      evaluate: measures the state. It must not keep a reference: the next step donates the state.
      evaluate_every: steps between evaluations; the last step is evaluated too. 0: never.
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

    The final state is the same however often the run was killed and resumed. If the phase is
    already finished, its state is restored and returned.

    Args:
      phase: the phase to train.
      workdir: the folder for checkpoints, metrics and failures; see `check_workdir`.
      config: JSON-like, saved with each checkpoint.
      mesh: a mesh from `data_mesh`; the state is replicated, batches are split over the devices.

    Returns:
      The state after `phase.num_steps` steps.

    Raises:
      Interrupted: the process got SIGTERM or Ctrl-C; the state is saved.
      NonFiniteLossError: a loss is not finite; the state before the step and its batch are saved.
      CheckpointMismatchError: the checkpoint in the workdir belongs to another model.
    """
    run = _Run(phase, Path(workdir).absolute(), config, mesh)
    if run.step < phase.num_steps:
        with StopRequest() as stop:
            run.to_end(stop)
    return run.state


class _Run:
    """A phase that runs in this process."""

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
        """Summarises the steps since the last record, and evaluates the state if that is due."""
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
        """Returns the seconds spent on the phase, including those of earlier processes."""
        return time.perf_counter() - self._start
