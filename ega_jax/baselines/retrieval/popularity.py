"""The popularity baseline: every user gets the most frequent items."""

import dataclasses

import numpy as np

from ega_jax.data.sequences import SequenceDataset


@dataclasses.dataclass(frozen=True)
class Popularity:
    """Scores an item by its number of training interactions."""

    counts: np.ndarray  # [P] float32.

    @classmethod
    def fit(cls, dataset: SequenceDataset) -> "Popularity":
        """Counts the training items."""
        taken = dataset.training_items.values
        counts = np.bincount(taken, minlength=dataset.summary.num_items)
        return cls(counts.astype(np.float32))

    def scores(self, history: np.ndarray) -> np.ndarray:
        """Returns the counts `[B, P]`; the history `[B, T]` has no effect."""
        return np.broadcast_to(self.counts, (len(history), len(self.counts)))
