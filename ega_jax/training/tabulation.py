"""Computing a table batch by batch, with partial tables saved on disk."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ega_jax.errors import UserError
from ega_jax.training.checkpoints import is_complete, read_arrays, read_metadata, save_tree
from ega_jax.training.interrupt import Interrupted, StopRequest
from ega_jax.training.progress import ProgressReport

SAVES = 10  # A table is saved after each tenth of its batches.

Columns = Mapping[str, Any]  # Arrays `[rows, ...]` by name, or nested mappings of them.


def tabulated(
    path: Path,
    num_batches: int,
    rows_of: Callable[[int], Columns],
    batch_size: int,
    name: str = "tabulating",
    made_of: Mapping[str, Any] | None = None,
) -> Columns:
    """Computes a table, or reads it if it is already finished.

    The table is the same however often the run was killed and resumed.

    Args:
      path: the folder of the table; an unfinished table holds the batches computed so far.
      num_batches: the number of batches; above 0.
      rows_of: computes the columns `[rows, ...]` of the batch with a given number.
      batch_size: the rows that a batch is made of; a saved table has to be of as many.
      name: what the progress report calls it.
      made_of: what else a saved table has to be of, such as its log.

    Returns:
      Columns of all batches' rows, in order, on the host.

    Raises:
      Interrupted: the process got SIGTERM or Ctrl-C; the finished batches are saved.
      UserError: the saved table is of something else; names it.
    """
    made_of = {"batches": num_batches, "batch_size": batch_size} | dict(made_of or {})
    parts, done, start = [], 0, time.perf_counter()
    if is_complete(path):
        known = read_metadata(path)
        for what, wanted in made_of.items():
            found = known.get("made_of", {}).get(what)
            if found != wanted:
                raise UserError(
                    f"{path} has {what} {found}, not {wanted}: remove it, or use the log, devices "
                    "and settings that it was made with"
                )
        parts, done = [read_arrays(path)], known["done"]
        start -= known["seconds"]
    joined = lambda: jax.tree.map(lambda *x: np.concatenate(x), *parts)
    if done == num_batches:
        return joined()
    with StopRequest() as stop, ProgressReport(name, done, num_batches) as progress:
        while done < num_batches:
            parts.append(jax.device_get(rows_of(done)))
            done += 1
            progress.count(done, num_batches)
            stopping = stop.agreed(done)
            if stopping or done == num_batches or done % -(-num_batches // SAVES) == 0:
                parts = [joined()]
                seconds = time.perf_counter() - start
                save_tree(path, parts[0], {"made_of": made_of, "done": done, "seconds": seconds})
            if stopping:
                raise Interrupted(
                    f"{name} stopped after {done} of {num_batches} batches, saved in {path}; "
                    "run the same command again to continue"
                )
    return joined()
