"""Item embeddings that join content with which items users take together.

Semantic codes made of content alone place items together that look alike. Items that the same users
take one soon after the other are alike in another way, which short texts do not show.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from ega_jax.data.sequences import SequenceDataset

WINDOW = 9  # Items further apart in a sequence do not count as taken together.
DECAY = 0.8  # The weight of a pair is multiplied by this for each item between the two.
WIDTH = 64  # Width of the embedding.
SMOOTHING = 0.75  # Exponent of popularity, which gives rare items less weight.


def with_interactions(dataset: SequenceDataset, share: float) -> np.ndarray:
    """Joins content and interactions to one embedding.

    Args:
      dataset: only its training items are read, never a held-out one.
      share: the interactions' part of the squared length, in [0, 1].

    Returns:
      `[P, E + 64]` float32, narrower where there are few items; an item that nobody took in
      training has no second part.
    """
    content = dataset.item_embedding
    parts = _unit(content), _unit(interaction_embedding(dataset))
    return np.concatenate(
        [np.sqrt(1 - share) * parts[0], np.sqrt(share) * parts[1]], axis=1
    ).astype(np.float32)


def interaction_embedding(dataset: SequenceDataset) -> np.ndarray:
    """Factors of the positive pointwise mutual information of items, from training items.

    Returns:
      `[P, 64]` float64, or narrower where there are few items: `U sqrt(S)` of its truncated SVD.
    """
    together = cooccurrence(dataset)
    count = np.asarray(together.sum(axis=1)).ravel()
    smoothed = count**SMOOTHING
    expected = count[together.row] * smoothed[together.col] / max(smoothed.sum(), 1e-12)
    information = np.log(together.data / expected)
    kept = information > 0
    places = together.row[kept], together.col[kept]
    matrix = sparse.csr_matrix((information[kept], places), together.shape)
    width = min(WIDTH, matrix.shape[0] - 1)
    if not matrix.nnz:
        return np.zeros((matrix.shape[0], width))
    start = np.random.default_rng(0).random(matrix.shape[0])
    left, scale, _ = svds(matrix, k=width, v0=start)
    return left * np.sqrt(scale)


def cooccurrence(dataset: SequenceDataset) -> sparse.coo_matrix:
    """`[P, P]` symmetric weights of items taken together, in the training part of sequences."""
    trained = dataset.training_items
    user, item = trained.row_of_value(), trained.values
    shape = (len(dataset.item_embedding),) * 2
    total = sparse.csr_matrix(shape)
    for gap in range(1, WINDOW + 1):
        same = user[gap:] == user[:-gap]
        first, second = item[:-gap][same], item[gap:][same]
        weight = np.full(first.size, DECAY ** (gap - 1))
        total += sparse.csr_matrix((weight, (first, second)), shape)
    return (total + total.T).tocoo()


def _unit(rows: np.ndarray) -> np.ndarray:
    """Scales rows to unit length; a row of zeros stays as it is."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 1e-9, length, 1.0)
