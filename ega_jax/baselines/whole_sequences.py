"""Training batches for models that learn from every item of a sequence at once."""

import functools

import grain
import jax
import numpy as np

from ega_jax.data.batch_source import Batch, BatchSource
from ega_jax.data.length_sorted import LengthSorted
from ega_jax.data.order import Order
from ega_jax.data.pipeline import ArrayRows
from ega_jax.data.sequences import SequenceDataset

_FOR_EVER = 2**60  # examples; more than any run reads.


def training_batches(
    dataset: SequenceDataset, *, batch_size: int, history_length: int, seed: int
) -> grain.IterDataset:
    """Shuffled batches without end of whole training sequences, like lengths together.

    Keys: `history_poi` `[B, T]`, all items for training but the last (padding on the left, as
    much as the longest of the batch needs), and `target_poi` `[B, 1]`, the last.
    """
    rows = ArrayRows(_whole_sequences(dataset, history_length))
    order = Order(rows.group_sizes, seed)
    whole = BatchSource(rows, order, _FOR_EVER, batch_size, range(batch_size))
    size = batch_size // jax.process_count()
    share = range(jax.process_index() * size, (jax.process_index() + 1) * size)
    return grain.MapDataset.source(LengthSorted(whole, share, seed)).to_iter_dataset()


def _whole_sequences(dataset: SequenceDataset, history_length: int) -> Batch:
    users = np.flatnonzero(dataset.num_training_items >= 2)
    last = dataset.num_training_items[users, None] - 1
    before = last - history_length + np.arange(history_length)
    gather = functools.partial(dataset.items.gather, users, fill=-1)
    return {"history_poi": gather(before), "target_poi": gather(last)}
