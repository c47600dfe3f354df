"""Ranks by sorting; what is left out of a ranking, and rows without a target."""

import numpy as np

from ega_jax.baselines.retrieval.full_ranking import full_ranking

P = 30


def rank_by_sorting(scores, target, removed=()):
    """Place from 0; of equal scores the lower id is first."""
    items = [item for item in range(P) if item not in removed]
    return sorted(items, key=lambda item: (-scores[item], item)).index(target)


def figures_by_loop(ranks):
    figures = {}
    for k in (5, 10):
        figures[f"recall@{k}"] = np.mean([rank < k for rank in ranks])
        figures[f"ndcg@{k}"] = np.mean([(rank < k) / np.log2(rank + 2) for rank in ranks])
    return figures


def batches_of(rng, num_batches, size):
    """Histories with padding and repetitions; every target is an item outside its history."""
    for _ in range(num_batches):
        history = rng.integers(-1, P // 2, (size, 4)).astype(np.int32)
        target = rng.integers(P // 2, P, (size, 1)).astype(np.int32)
        yield {"history_poi": history, "target_poi": target}


def test_against_sorting():
    rng = np.random.default_rng(0)
    table = rng.integers(0, 6, (P + 1, P)).astype(np.float32)  # Many equal scores.
    scores = lambda history: table[history[:, -1]]
    batches = list(batches_of(rng, 3, 20))
    rows = [
        (scores(history[None])[0], history, target)
        for batch in batches
        for history, (target,) in zip(batch["history_poi"], batch["target_poi"], strict=True)
    ]
    found = full_ranking(scores, batches)
    expected = figures_by_loop([rank_by_sorting(s, target) for s, _, target in rows])
    unseen = figures_by_loop([rank_by_sorting(s, t, set(h.tolist())) for s, h, t in rows])
    expected |= {f"unseen_{name}": value for name, value in unseen.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    assert found["recall@10"] < found["unseen_recall@10"]


def test_an_item_of_the_history_may_be_the_target():
    favourite = lambda history: np.eye(P, dtype=np.float32)[history[:, -1]]
    batch = {"history_poi": np.array([[-1, 20]], np.int32), "target_poi": np.array([[20]])}
    figures = full_ranking(favourite, [batch])
    assert (figures["ndcg@5"], figures["unseen_recall@10"]) == (1.0, 0.0)


def test_blank_rows_are_left_out():
    (batch,) = batches_of(np.random.default_rng(1), 1, 8)
    scores = lambda history: np.arange(P)[::-1] + np.zeros((len(history), 1), np.float32)
    blank = {name: np.concatenate([x, np.full_like(x, -1)]) for name, x in batch.items()}
    assert full_ranking(scores, [blank]) == full_ranking(scores, [batch])
