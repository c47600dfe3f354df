"""Stopping cleanly on Ctrl-C or SIGTERM."""

import signal
import threading
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STEPS_BETWEEN_AGREEMENTS = 20  # All hosts must stop after the same step.


class Interrupted(Exception):  # noqa: N818, an orderly end and not an error.
    """Training was asked to stop; its state is saved, and the same command continues it."""


class StopRequest:
    """A context in which the first SIGINT or SIGTERM requests a stop and the second one kills.

    Python handles signals in the main thread only; in other threads the context does nothing.
    """

    def __enter__(self) -> "StopRequest":
        """Installs the signal handlers."""
        self._requested = False
        main = threading.current_thread() is threading.main_thread()
        self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS if main}
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the previous handlers."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self._requested = True
        signal.signal(signum, self._previous[signal.Signals(signum)])

    def agreed(self, step: int) -> bool:
        """Returns whether to stop after this step; the answer is the same on every host."""
        if jax.process_count() == 1:
            return self._requested
        if step % STEPS_BETWEEN_AGREEMENTS:
            return False
        return bool(multihost_utils.process_allgather(np.array(self._requested)).any())
