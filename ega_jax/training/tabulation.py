"""A table that is made batch by batch and kept on disk as it grows."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from ega_jax.training.checkpoints import is_complete, read_tree, save_tree
from ega_jax.training.interrupt import Interrupted, StopRequest
from ega_jax.training.progress import ProgressReport

SAVES = 10  # How often a table is saved while it is made.


def tabulated(
    path: Path, num_batches: int, batch_size: int, rows_of: Callable[[int], Mapping[str, jax.Array]]
) -> dict[str, np.ndarray]:
    """Makes a table, or reads it where it is finished already.

    The table does not depend on how often, or when, the run was killed and resumed.

    Args:
      path: the folder that it is saved as, with its first batches while it is unfinished.
      num_batches: how many batches it has.
      batch_size: rows of each.
      rows_of: columns `[batch_size, ...]` of a batch, by its number.

    Returns:
      Columns `[num_batches * batch_size, ...]` on the host.

    Raises:
      Interrupted: SIGTERM or Ctrl-C came; the batches that are done are saved.
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
