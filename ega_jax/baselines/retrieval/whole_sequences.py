"""Training batches of whole sequences, for models that are trained on all positions at once."""

import functools

import grain
import jax
import numpy as np

from ega_jax.data.batch_source import Batch
from ega_jax.data.pipeline import array_batches
from ega_jax.data.sequences import SequenceDataset


def training_batches(
    dataset: SequenceDataset, *, batch_size: int, history_length: int, seed: int
) -> grain.IterDataset:
    """Returns endless shuffled batches of training sequences; a batch has similar lengths.

    A sequence of more than T + 1 training items is cut into windows of T + 1 items. Each window
    starts with the last item of the one before, so every item but the first is a target once per
    epoch.

    Keys: `history_poi` `[B, T]`, all items of a window but the last, padded on the left to the
    longest window of the batch; `target_poi` `[B, 1]`, the last item.
    """
    return array_batches(
        _whole_sequences(dataset, history_length),
        batch_size=batch_size,
        seed=seed,
        sort_by_length=True,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _whole_sequences(dataset: SequenceDataset, history_length: int) -> Batch:
    users = np.flatnonzero(dataset.num_training_items >= 2)
    following = dataset.num_training_items[users] - 1  # Number of targets.
    windows = -(-following // history_length)
    first = np.repeat(np.cumsum(windows) - windows, windows)  # Row of a user's last window.
    from_end = np.arange(first.size) - first
    last = (np.repeat(following, windows) - from_end * history_length)[:, None]
    before = last - history_length + np.arange(history_length)
    gather = functools.partial(dataset.items.gather, np.repeat(users, windows), fill=-1)
    return {"history_poi": gather(before), "target_poi": gather(last)}
