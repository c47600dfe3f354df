"""Similarities and scores by plain loops; what does not count; the figures on public data."""

from pathlib import Path

import numpy as np
import pytest
from tiny_sequences import dataset_of, random_sequences, trained_on

from ega_jax.baselines.retrieval.full_ranking import full_ranking
from ega_jax.baselines.retrieval.item_knn import ItemKnn
from ega_jax.data import pipeline

P, LAST, RECENCY = 8, 4, 0.7
SEQUENCES = random_sequences(1, num_users=25, num_items=P - 1, longest=9)
BEAUTY = Path(__file__).parents[3] / "shared" / "data" / "beauty"


@pytest.fixture(scope="module")
def knn():
    return ItemKnn.fit(dataset_of(SEQUENCES, P), recency=RECENCY, num_last=LAST)


def cosine(one, other):
    """Share of common users among those who took either, of the last items for training."""
    users = [set(trained_on(sequence)[-LAST:]) for sequence in SEQUENCES]
    both = sum(one in taken and other in taken for taken in users)
    counts = [sum(item in taken for taken in users) for item in (one, other)]
    return both / np.sqrt(counts[0] * counts[1]) if both and one != other else 0.0


def test_similarity_against_a_loop(knn):
    expected = [[cosine(i, j) for j in range(P)] for i in range(P)]
    np.testing.assert_allclose(knn.similarity.toarray(), expected, rtol=1e-6)
    assert np.count_nonzero(expected) > P


def test_scores_against_a_loop(knn):
    rng = np.random.default_rng(2)
    history = rng.integers(-1, P, (6, LAST + 2)).astype(np.int32)
    expected = np.zeros((6, P))
    for b, items in enumerate(history.tolist()):
        for age, item in enumerate(reversed(items[-LAST:])):
            if item >= 0:
                for other in range(P):
                    expected[b, other] += RECENCY**age * cosine(item, other)
    np.testing.assert_allclose(knn.scores(history), expected, rtol=1e-5, atol=1e-7)


def test_padding_and_old_items_change_nothing(knn):
    last = np.array([[1, 2, 3, 4]], np.int32)
    padded = np.array([[-1, -1, 1, 2, 3, 4]], np.int32)
    older = np.array([[5, 6, 1, 2, 3, 4]], np.int32)
    for history in (padded, older):
        np.testing.assert_array_equal(knn.scores(history), knn.scores(last))
    assert not knn.scores(np.full((1, 5), -1, np.int32)).any()


def test_held_out_items_change_nothing(knn):
    changed = [s if len(s) < 3 else [*s[:-2], 7, 7] for s in SEQUENCES]
    again = ItemKnn.fit(dataset_of(changed, P), recency=RECENCY, num_last=LAST)
    np.testing.assert_array_equal(again.similarity.toarray(), knn.similarity.toarray())


@pytest.mark.slow
@pytest.mark.skipif(not BEAUTY.is_dir(), reason="no public data beside the repository")
def test_recall_on_beauty():
    """Near the .060 of a kNN that also counts the item before the target."""
    dataset = pipeline.open_dataset(BEAUTY)
    batches = pipeline.eval_batches(dataset, "test", batch_size=256, history_length=20)
    figures = full_ranking(
        ItemKnn.fit(dataset, recency=RECENCY, num_last=LAST).scores, list(batches)
    )
    np.testing.assert_allclose(figures["recall@10"], 0.0574, atol=5e-4)
    np.testing.assert_allclose(figures["unseen_recall@10"], 0.0695, atol=5e-4)
