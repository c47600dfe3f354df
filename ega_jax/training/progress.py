"""Progress of a phase: a bar on a terminal, plain lines elsewhere."""

import datetime
import time
from collections.abc import Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
SECONDS_OF_SPEED = 300.0  # Window of the speed from which the time left is estimated.


class ProgressReport:
    """A context manager that shows a phase's step, loss, speed and time left on stderr."""

    def __init__(self, name: str, step: int, num_steps: int, console: Console | None = None):
        self._name = name
        self._num_steps = num_steps
        quiet = jax.process_index() != 0
        self._console = console or Console(stderr=True, quiet=quiet, soft_wrap=True)
        self._last_line = -SECONDS_BETWEEN_LINES
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            speed_estimate_period=SECONDS_OF_SPEED,
        )
        self._task = self._bar.add_task(name, total=num_steps, completed=step, summary="")

    def __enter__(self) -> "ProgressReport":
        """Starts the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the bar and leaves it on the terminal."""
        self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a training step with its loss and speed."""
        loss, speed = metrics["loss"], metrics["samples_per_second"]
        self.count(step, self._num_steps, f"loss {loss:.4f}  {speed:.0f} samples/s")

    def count(self, step: int, num_steps: int, summary: str = "") -> None:
        """Shows the number of steps done.

        Plain lines are printed at most every ten seconds, and at the end.
        """
        self._num_steps = num_steps
        self._bar.update(self._task, total=num_steps, completed=step, summary=summary)
        now = time.perf_counter()
        due = step == self._num_steps or now - self._last_line >= SECONDS_BETWEEN_LINES
        if not self._console.is_terminal and due:
            self._last_line = now
            left = self._bar.tasks[self._task].time_remaining
            known = "-:--:--" if left is None else datetime.timedelta(seconds=round(left))
            self._console.print(
                f"{self._name}  {step}/{self._num_steps}  {summary}  {known} left", highlight=False
            )
