"""Item-based nearest neighbours: items that the same users took (Sarwar et al., 2001)."""

import dataclasses

import numpy as np
import scipy.sparse as sp

from ega_jax.data.sequences import SequenceDataset
from ega_jax.setting import setting


@dataclasses.dataclass(frozen=True)
class ItemKnnSettings:
    """The group `item_knn`."""

    recency: float = setting(0.8, above=0, at_most=1)  # Factor per step back in the history.
    num_last: int = setting(20, at_least=1)  # Items of a history that count.


@dataclasses.dataclass(frozen=True)
class ItemKnn:
    """Scores an item by its similarity to the user's last items, recent ones counting more.

    The similarity of two items is the cosine of their columns in the users' table of what they
    took: `users of both / sqrt(users of one * users of the other)`; an item's own is 0. All
    neighbours count, not a fixed number of the nearest.
    """

    similarity: sp.csr_matrix  # [P, P] float32, symmetric.
    recency: float  # Factor per step back in the history.
    num_last: int  # Items of a history that count.

    @classmethod
    def fit(cls, dataset: SequenceDataset, *, recency: float, num_last: int) -> "ItemKnn":
        """Counts which items the same users took, of the last items for training of each.

        The item before the test target is history at test time, but is not counted here: no
        baseline learns from it. In a long sequence, items far apart say little of each other.
        """
        users = np.arange(dataset.items.num_rows)
        places = dataset.num_training_items[:, None] - num_last + np.arange(num_last)
        last = dataset.items.gather(users, places, -1)
        taken = _table(last, np.ones(num_last), dataset.summary.num_items)
        taken.data[:] = 1.0  # Taken twice is taken.
        both = (taken.T @ taken).tocsr()
        both.setdiag(0.0)
        both.eliminate_zeros()
        scale = sp.diags(1 / np.sqrt(np.maximum(taken.sum(axis=0).A1, 1.0)))
        return cls((scale @ both @ scale).tocsr().astype(np.float32), recency, num_last)

    def scores(self, history: np.ndarray) -> np.ndarray:
        """Scores all items for some users.

        Args:
          history: `[B, T]` int item ids, most recent last, -1 where none.

        Returns:
          `[B, P]` float32: the sum over the last items of `recency ** age * similarity`, where
          the most recent item has age 0.
        """
        last = history[:, -self.num_last :]
        weights = self.recency ** np.arange(last.shape[1])[::-1]
        return (_table(last, weights, self.similarity.shape[0]) @ self.similarity).toarray()


def _table(items: np.ndarray, weights: np.ndarray, num_items: int) -> sp.csr_matrix:
    """`[B, P]` the sum of the weights `[T]` of the places of `items` `[B, T]` that hold an item."""
    rows, places = np.nonzero(items >= 0)
    entries = (weights[places].astype(np.float32), (rows, items[rows, places]))
    return sp.csr_matrix(entries, shape=(len(items), num_items))
