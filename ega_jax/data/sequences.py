"""Interaction sequences: what users did, split by leaving the last items out.

In a sequence of three items or more, the last is the test target, the last but one is the
validation target, and the others are for training. Shorter sequences are never evaluated: all
their items are for training. A sequence gives training examples if at least two items are for
training, a history and a target.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from ega_jax.data.batch_source import Batch, InMemoryRows
from ega_jax.data.item_rules import open_items
from ega_jax.data.ragged import Ragged
from ega_jax.data.reading import read_lists, read_matrix
from ega_jax.data.schema import Summary
from ega_jax.data.sequence_rules import SHORTEST, open_sequences, training_lengths

HELD_OUT = {"validation": 2, "test": 1}  # split -> place of the target, from the end.


@dataclasses.dataclass(frozen=True)
class SequenceDataset:
    """A folder in the sequences format, in memory."""

    summary: Summary
    item_embedding: np.ndarray  # [P, E] float32.
    creative_embedding: np.ndarray  # [R, E'] float32; R = P, or 0 if items have no images.
    creative_poi: np.ndarray  # [R] int32, the item of each creative: its own id.
    items: Ragged  # int32 item ids, one row per sequence, in time order.

    @classmethod
    def load(cls, folder: Path | str, summary: Summary) -> "SequenceDataset":
        """Reads a folder that `schema.validate` found valid, with the summary it returned."""
        items = open_items(Path(folder))
        images = np.zeros((0, 0), np.float32)
        if summary.num_creatives:
            images = read_matrix(items, "image_embedding")
        return cls(
            summary=summary,
            item_embedding=read_matrix(items, "embedding"),
            creative_embedding=images,
            creative_poi=np.arange(len(images), dtype=np.int32),
            items=read_lists(open_sequences(Path(folder)), "items", np.int32),
        )

    @functools.cached_property
    def num_training_items(self) -> np.ndarray:
        """`[sequences]` int64 how many of the first items are for training."""
        lengths = self.items.lengths
        return training_lengths(lengths)

    @property
    def training_items(self) -> Ragged:
        """The items of each sequence that are for training."""
        row = self.items.row_of_value()
        kept = np.arange(row.size) - self.items.offsets[row] < self.num_training_items[row]
        offsets = np.concatenate([[0], np.cumsum(self.num_training_items)])
        return Ragged(self.items.values[kept], offsets)


@dataclasses.dataclass(frozen=True)
class TrainingSequences(InMemoryRows):
    """The rows that training draws from: per epoch, one split point of each sequence.

    The items before the split point are the history, the K items from it on are the target. Plain
    sequences have no slates, so the next items stand in for what a request shows (sec. 4.1).
    """

    dataset: SequenceDataset
    history_length: int  # T
    num_slots: int  # K
    seed: int

    @functools.cached_property
    def users(self) -> np.ndarray:
        """`[rows]` the sequences long enough to train on."""
        return np.flatnonzero(self.dataset.num_training_items >= 2)

    @property
    def num_rows(self) -> int:
        """One row per sequence."""
        return len(self.users)

    def examples(self, pool: None, rows: np.ndarray, epoch: int) -> Batch:
        """Examples of some rows; the split points depend on (seed, epoch, row) alone."""
        users = self.users[rows]
        num_items = self.dataset.num_training_items[users]
        uniform = _uniform(len(self.users), self.seed, epoch)[rows]
        split = 1 + (uniform * (num_items - 1)).astype(np.int64)
        targets = split[:, None] + np.arange(self.num_slots)
        targets = np.where(targets < num_items[:, None], targets, -1)
        return _examples(self.dataset, users, split, targets, self.history_length)


@dataclasses.dataclass(frozen=True)
class HeldOutItems(InMemoryRows):
    """The rows of an evaluation: a held-out item is the target, all before it is history."""

    dataset: SequenceDataset
    split: str  # "validation" or "test".
    history_length: int  # T
    num_slots: int  # K; only the first slot has a target.

    @functools.cached_property
    def users(self) -> np.ndarray:
        """`[rows]` the sequences that are evaluated."""
        return np.flatnonzero(self.dataset.items.lengths >= SHORTEST)

    @property
    def num_rows(self) -> int:
        """One row per sequence."""
        return len(self.users)

    def examples(self, pool: None, rows: np.ndarray, epoch: int) -> Batch:
        """Examples of some rows, the same in every epoch."""
        users = self.users[rows]
        place = self.dataset.items.lengths[users] - HELD_OUT[self.split]
        targets = np.where(np.arange(self.num_slots) == 0, place[:, None], -1)
        return _examples(self.dataset, users, place, targets, self.history_length)


def _examples(
    dataset: SequenceDataset,
    users: np.ndarray,
    split: np.ndarray,
    targets: np.ndarray,
    history_length: int,
) -> Batch:
    """Histories before `split` `[B]` and the items at `targets` `[B, K]`, -1 where none."""
    before = split[:, None] - history_length + np.arange(history_length)
    history_poi = dataset.items.gather(users, before, -1)
    target_poi = dataset.items.gather(users, targets, -1)
    no_creatives = len(dataset.creative_poi) == 0
    return {
        "history_poi": history_poi,
        "history_creative": np.full_like(history_poi, -1) if no_creatives else history_poi.copy(),
        "target_poi": target_poi,
        "target_creative": np.full_like(target_poi, -1) if no_creatives else target_poi.copy(),
        "target_weight": (target_poi >= 0).astype(np.float32),
    }


@functools.lru_cache(maxsize=2)
def _uniform(rows: int, seed: int, epoch: int) -> np.ndarray:
    """`[rows]` in [0, 1), one draw per row of an epoch."""
    return np.random.default_rng((seed, epoch)).random(rows)
