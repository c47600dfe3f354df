"""Recall and NDCG against a loop."""

import numpy as np
import pytest

from ega_jax.evaluation.retrieval import recall_ndcg, target_rank, without_seen

RANKED = np.array([[7, 3, 1, 9], [2, 0, 5, -1], [4, -1, -1, -1], [8, 6, 2, 1], [-1, -1, -1, -1]])
TARGET = np.array([3, 5, 4, 0, 6])


def by_loop(ranked, target, k, where):
    recall, ndcg, count = 0.0, 0.0, 0
    for row, wanted, counts in zip(ranked.tolist(), target.tolist(), where, strict=True):
        count += counts
        if counts and wanted in row[:k]:
            recall += 1
            ndcg += 1 / np.log2(row.index(wanted) + 2)
    return recall / max(count, 1), ndcg / max(count, 1)


@pytest.mark.parametrize("where", [None, [1, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
def test_against_a_loop(where):
    metrics = recall_ndcg(
        RANKED, TARGET, (1, 2, 4), where if where is None else np.array(where, bool)
    )
    assert metrics.keys() == {f"{name}@{k}" for name in ("recall", "ndcg") for k in (1, 2, 4)}
    for k in (1, 2, 4):
        recall, ndcg = by_loop(RANKED, TARGET, k, where or [1] * 5)
        np.testing.assert_allclose(metrics[f"recall@{k}"], recall, rtol=1e-6)
        np.testing.assert_allclose(metrics[f"ndcg@{k}"], ndcg, rtol=1e-6)


def test_what_was_seen_leaves_the_ranking():
    history = np.array([[-1, 3], [-1, -1], [4, 9], [2, 8], [1, 2]])
    expected = [[7, 1, 9, -1], [2, 0, 5, -1], [-1] * 4, [6, 1, -1, -1], [-1] * 4]
    np.testing.assert_array_equal(without_seen(RANKED, history), expected)


def test_random_rankings():
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(30)[:10] for _ in range(200)])
    target, where = rng.integers(0, 30, 200), rng.random(200) < 0.7
    metrics = recall_ndcg(ranked, target, (5, 10), where)
    for k in (5, 10):
        expected = by_loop(ranked, target, k, where)
        found = metrics[f"recall@{k}"], metrics[f"ndcg@{k}"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert 0 < expected[1] < expected[0] < 1


def test_rank_of_what_is_not_listed_is_the_length_of_the_list():
    np.testing.assert_array_equal(target_rank(RANKED, TARGET), [1, 2, 0, 4, 4])


def test_an_empty_place_is_never_a_hit():
    metrics = recall_ndcg(np.full((2, 3), -1), np.array([0, 1]), (3,))
    assert metrics["recall@3"] == metrics["ndcg@3"] == 0


def test_a_list_too_short_to_measure_is_refused():
    with pytest.raises(ValueError, match="recall@10 needs rankings of at least 10 items, got 4"):
        recall_ndcg(RANKED, TARGET, (5, 10))


def test_what_does_not_fit_is_refused_and_padding_is_no_hit():
    with pytest.raises(AssertionError):
        recall_ndcg([[1, 2, 3], [4, 5, 6]], [1], (1,))
    with pytest.raises(AssertionError):
        recall_ndcg([[1, 2, 3], [4, 5, 6]], [1, 6], (1,), where=[True])
    assert recall_ndcg([[-1, -1, 2]], [-1], (1,))["recall@1"] == 0
