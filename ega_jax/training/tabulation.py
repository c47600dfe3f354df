"""Computing a table batch by batch, with partial tables saved on disk."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from ega_jax.training.checkpoints import is_complete, read_tree, save_tree
from ega_jax.training.interrupt import Interrupted, StopRequest
from ega_jax.training.progress import ProgressReport

SAVES = 10  # A table is saved after each tenth of its batches.


def tabulated(
    path: Path, num_batches: int, batch_size: int, rows_of: Callable[[int], Mapping[str, jax.Array]]
) -> dict[str, np.ndarray]:
    """Computes a table, or reads it if it is already finished.

    The table is the same however often the run was killed and resumed.

    Args:
      path: the folder of the table; an unfinished table holds the batches computed so far.
      num_batches: the number of batches.
      batch_size: rows per batch.
      rows_of: computes the columns `[batch_size, ...]` of the batch with a given number.

    Returns:
      Columns `[num_batches * batch_size, ...]` on the host.

    Raises:
      Interrupted: the process got SIGTERM or Ctrl-C; the finished batches are saved.
    """
    parts = [jax.device_get(read_tree(path))] if is_complete(path) else []
    joined = lambda: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    done = sum(len(next(iter(part.values()))) for part in parts) // batch_size
    if done == num_batches:
        return joined()
    num_rows = num_batches * batch_size
    with StopRequest() as stop, ProgressReport("tabulating", done * batch_size, num_rows) as shown:
        while done < num_batches:
            parts.append(jax.device_get(rows_of(done)))
            done += 1
            shown.count(done * batch_size, num_rows)
            stopping = stop.agreed(done)
            if stopping or done == num_batches or done % -(-num_batches // SAVES) == 0:
                parts = [joined()]
                save_tree(path, parts[0], {})
            if stopping:
                raise Interrupted(
                    f"tabulating stopped after {done} of {num_batches} batches, saved in {path}; "
                    "run the same command again to continue"
                )
    return joined()
