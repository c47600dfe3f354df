"""Item-based nearest neighbours, by co-occurrence of items in users' histories (Sarwar, 2001)."""

import dataclasses

import numpy as np
import scipy.sparse as sp

from ega_jax.data.sequences import SequenceDataset
from ega_jax.setting import setting


@dataclasses.dataclass(frozen=True)
class ItemKnnSettings:
    """The group `item_knn`."""

    recency: float = setting(0.8, above=0, at_most=1)  # Factor per step back in the history.
    num_last: int = setting(20, at_least=1)  # Number of last items of a history that are used.


@dataclasses.dataclass(frozen=True)
class ItemKnn:
    """Scores an item by its similarity to the user's last items; recent ones have more weight.

    The similarity of two items is the cosine of their columns in the user-item matrix, `users of
    both / sqrt(users of one * users of the other)`; an item's similarity to itself is 0. All
    neighbours are used, not a fixed number of the nearest.
    """

    similarity: sp.csr_matrix  # [P, P] float32, symmetric.
    recency: float  # Factor per step back in the history.
    num_last: int  # Number of last items of a history that are used.

    @classmethod
    def fit(cls, dataset: SequenceDataset, *, recency: float, num_last: int) -> "ItemKnn":
        """Counts co-occurrences among the last `num_last` training items of each user.

        Older items are left out, because distant items of a long sequence are hardly related. The
        item before the test target is history at test time but no training item, so it is not
        counted here; no baseline trains on it.
        """
        users = np.arange(dataset.items.num_rows)
        places = dataset.num_training_items[:, None] - num_last + np.arange(num_last)
        last = dataset.items.gather(users, places, -1)
        taken = _table(last, np.ones(num_last), dataset.summary.num_items)
        taken.data[:] = 1.0  # Repeated items count once.
        both = (taken.T @ taken).tocsr()
        both.setdiag(0.0)
        both.eliminate_zeros()
        scale = sp.diags(1 / np.sqrt(np.maximum(taken.sum(axis=0).A1, 1.0)))
        return cls((scale @ both @ scale).tocsr().astype(np.float32), recency, num_last)

    def scores(self, history: np.ndarray) -> np.ndarray:
        """Scores all items for a batch of users.

        Args:
          history: `[B, T]` int item ids, most recent last, -1 where none.

        Returns:
          `[B, P]` float32: the sum over the last items of `recency ** age * similarity`; the most
          recent item has age 0.
        """
        last = history[:, -self.num_last :]
        weights = self.recency ** np.arange(last.shape[1])[::-1]
        return (_table(last, weights, self.similarity.shape[0]) @ self.similarity).toarray()


def _table(items: np.ndarray, weights: np.ndarray, num_items: int) -> sp.csr_matrix:
    """Returns `[B, P]`: for each item, the sum of the weights `[T]` of its places in `items`."""
    rows, places = np.nonzero(items >= 0)
    entries = (weights[places].astype(np.float32), (rows, items[rows, places]))
    return sp.csr_matrix(entries, shape=(len(items), num_items))
