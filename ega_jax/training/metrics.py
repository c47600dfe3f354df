"""A phase's metrics: means over steps, speed, and the files they are written to."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from ega_jax.training.files import replacing
from ega_jax.types import Metrics


class Meter:
    """Collects the metrics of the steps between two log lines without waiting for the device."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._steps: list[Metrics] = []
        self._samples = 0
        self._waiting = 0.0
        self._paused = 0.0
        self._start = time.perf_counter()

    def add(self, metrics: Metrics, samples: int) -> None:
        """Adds a step's metrics, which may still be on the device, and its batch size."""
        self._steps.append(metrics)
        self._samples += samples

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent in the context as waiting for data."""
        start = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time spent in the context (saving, evaluating) out of the speed."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """Returns the steps' mean metrics and speed, and starts over.

        Adds `samples_per_second`, and `data_wait_share`: the share of the time spent waiting for
        data.
        """
        steps = jax.device_get(self._steps)
        seconds = time.perf_counter() - self._start - self._paused
        means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
        speed = {
            "samples_per_second": self._samples / seconds,
            "data_wait_share": self._waiting / seconds,
        }
        self._restart()
        return means | speed


class MetricsWriter:
    """Writes a phase's metrics as JSON lines and for TensorBoard.

    Only the first process of a run writes. A new writer first drops the lines of steps after
    `step` and lines that were cut short, so that the file holds each step once.
    """

    def __init__(self, workdir: Path, name: str, step: int):
        self._active = jax.process_index() == 0
        if self._active:
            path = workdir / "metrics" / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_after(path, step)
            self._lines = path.open("a")
            logdir = str(workdir / "tensorboard" / name)
            self._tensorboard = SummaryWriter(logdir, purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line; a value that is not finite becomes `null`."""
        if not self._active:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._lines.write(json.dumps({"step": step} | finite) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def close(self) -> None:
        """Closes both files."""
        if self._active:
            self._lines.close()
            self._tensorboard.close()


def metrics_files(folder: Path) -> list[Path]:
    """Returns the metrics files of the phases trained in a folder, one per phase, by name."""
    return sorted(folder.glob("metrics/[!.]*.jsonl"))


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """Returns the records of a metrics file, oldest first, up to the first incomplete line."""
    records = []
    for line in Path(path).read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _drop_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        with replacing(path) as written:
            written.write_text("".join(json.dumps(record) + "\n" for record in kept))
