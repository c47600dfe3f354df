"""The scale of the context: measured once on a workdir's training sessions, then restored.

Models keep it, so that a longer log does not shift what they read.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.data.pipeline import Dataset
from ega_jax.errors import UserError
from ega_jax.training.files import read_json, write_json
from ega_jax.types import ContextScale

FILE = "context.json"  # In the workdir; absent if the log has no context.


def context_scale(dataset: Dataset, workdir: Path) -> ContextScale:
    """Measures mean and deviation of the context over the split "pretrain", or restores them.

    Args:
      dataset: the workdir's dataset.
      workdir: where the result is kept.

    Returns:
      The scale; empty if the dataset has no context.

    Raises:
      UserError: the workdir was made with a context of another width.
    """
    path, width = workdir / FILE, dataset.summary.context_width
    if path.exists():
        saved = read_json(path)
        scale = ContextScale(tuple(saved["mean"]), tuple(saved["deviation"]))
        if scale.width != width:
            raise UserError(
                f"a context of the log has {width} values, and the models of {workdir} read "
                f"{scale.width}: choose another workdir"
            )
        return scale
    if not isinstance(dataset, AdLogDataset) or not width:
        return ContextScale()
    scale = measure(dataset.recorded_in("pretrain", "context"))
    if jax.process_index() == 0:
        write_json(path, dataclasses.asdict(scale))
    return scale


def measure(contexts: Iterable[np.ndarray]) -> ContextScale:
    """The mean and deviation of contexts `[rows, X]`, in one pass over some rows at a time.

    Values are shifted by the first row, so a value that never varies has a deviation of exactly 0.
    """
    rows, first, total, square = 0, np.zeros(1), np.zeros(1), np.zeros(1)
    for part in contexts:
        first = first if rows else part[0].astype(np.float64)
        shifted = part - first
        rows += len(part)
        total = total + shifted.sum(axis=0)
        square = square + (shifted**2).sum(axis=0)
    mean = total / rows
    deviation = np.sqrt(np.maximum(square / rows - mean**2, 0.0))
    return ContextScale(tuple((first + mean).tolist()), tuple(deviation.tolist()))
