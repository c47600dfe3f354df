"""Optional columns of sessions that batches carry: context, exploration, propensity."""

import numpy as np
import pyarrow as pa

from ega_jax.data.columns import is_list, to_numpy
from ega_jax.data.ragged import Ragged

RECORDED = ("context", "explored", "propensity")


def recorded_values(table: pa.Table, column: str, num_slots: int) -> np.ndarray:
    """One of the columns as batches carry it; see `pipeline.train_batches`.

    Args:
      table: some rows of a valid log.
      column: one of `RECORDED`.
      num_slots: K, at least the most items shown.

    Returns:
      `[rows, X]` float32, `[rows]` bool, or `[rows, K]` float32.
    """
    values = table[column]
    if column == "explored":
        return to_numpy(values, bool)
    if column == "context":
        return Ragged.from_arrow(values, np.float32).values.reshape(len(values), -1)
    if is_list(values.type):
        every = np.arange(len(values))
        propensity = Ragged.from_arrow(values, np.float32).first(every, num_slots, 1.0)
    else:
        propensity = np.ones((len(values), num_slots), np.float32)
        propensity[:, 0] = to_numpy(values, np.float32)
    return np.where(values.is_valid().to_numpy()[:, None], propensity, np.float32(0))
