"""Interaction sequences in memory, from plain lists."""

import numpy as np

from ega_jax.data.ragged import Ragged
from ega_jax.data.schema import Summary
from ega_jax.data.sequences import SequenceDataset


def dataset_of(sequences, num_items):
    """A dataset of some lists of item ids."""
    lengths = [len(sequence) for sequence in sequences]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    summary = Summary(
        format="sequences",
        num_items=num_items,
        num_creatives=0,
        embedding_width=2,
        creative_width=0,
        num_rows=len(sequences),
        num_actions=sum(lengths),
        num_slots=1,
        num_candidates=0,
        longest_history=max(lengths),
    )
    return SequenceDataset(
        summary=summary,
        item_embedding=np.zeros((num_items, 2), np.float32),
        creative_embedding=np.zeros((0, 0), np.float32),
        creative_poi=np.zeros(0, np.int32),
        items=Ragged(np.concatenate(sequences).astype(np.int32), offsets),
    )


def random_sequences(seed, num_users, num_items, longest):
    """Lists of one item at least, some items more than once."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, num_users)
    return [rng.integers(0, num_items, length).tolist() for length in lengths]


def trained_on(sequence):
    """The items for training, as the dataset's docstring says."""
    return sequence[:-2] if len(sequence) >= 3 else sequence
