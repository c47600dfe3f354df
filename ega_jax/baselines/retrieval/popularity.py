"""The least a recommender must beat: every user gets what most users took."""

import dataclasses

import numpy as np

from ega_jax.data.sequences import SequenceDataset


@dataclasses.dataclass(frozen=True)
class Popularity:
    """How often each item was taken."""

    counts: np.ndarray  # [P] float32.

    @classmethod
    def fit(cls, dataset: SequenceDataset) -> "Popularity":
        """Counts the items for training."""
        taken = dataset.training_items.values
        counts = np.bincount(taken, minlength=dataset.summary.num_items)
        return cls(counts.astype(np.float32))

    def scores(self, history: np.ndarray) -> np.ndarray:
        """The counts `[B, P]`, whatever the history `[B, T]`."""
        return np.broadcast_to(self.counts, (len(history), len(self.counts)))
