"""Co-occurrence against loops, blind to held-out items; likeness that content does not tell."""

import dataclasses

import numpy as np

from ega_jax.data.interactions import (
    DECAY,
    WINDOW,
    cooccurrence,
    interaction_embedding,
    with_interactions,
)
from ega_jax.data.ragged import Ragged
from ega_jax.data.sequences import SequenceDataset

P = 12


def dataset_of(rows):
    values = np.concatenate(rows).astype(np.int32)
    offsets = np.cumsum([0, *map(len, rows)])
    rng = np.random.default_rng(0)
    nothing = np.zeros((0, 0), np.float32)
    return SequenceDataset(
        summary=None,
        item_embedding=rng.normal(size=(P, 4)).astype(np.float32),
        creative_embedding=nothing,
        creative_poi=np.zeros(0, np.int32),
        items=Ragged(values, offsets),
    )


def random_rows(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, P - 1, rng.integers(1, 16)) for _ in range(40)]


def test_pairs_within_the_window_by_a_loop():
    rows = random_rows()
    expected = np.zeros((P, P))
    for row in rows:
        trained = row[:-2] if len(row) >= 3 else row
        for i, a in enumerate(trained):
            for j in range(i + 1, min(len(trained), i + 1 + WINDOW)):
                expected[a, trained[j]] += DECAY ** (j - i - 1)
                expected[trained[j], a] += DECAY ** (j - i - 1)
    np.testing.assert_allclose(cooccurrence(dataset_of(rows)).toarray(), expected, rtol=1e-12)


def test_held_out_items_change_nothing():
    rows = [row for row in random_rows() if len(row) >= 3]
    other = [np.append(row[:-2], [0, 1]) for row in rows]
    found = [with_interactions(dataset_of(some), 0.7) for some in (rows, other)]
    np.testing.assert_array_equal(*found)


def test_items_taken_together_come_close_and_unknown_ones_keep_their_content():
    """Two groups of items, and one item that nobody takes."""
    rng = np.random.default_rng(1)
    rows = [rng.choice(5, 8) + 5 * (user % 2) for user in range(60)]
    dataset = dataset_of(rows)
    joined = with_interactions(dataset, 0.7)
    content, interactions = joined[:, :4], joined[:, 4:]
    np.testing.assert_allclose(np.linalg.norm(content, axis=1), np.sqrt(0.3), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(interactions[:10], axis=1), np.sqrt(0.7), rtol=1e-5)
    assert not interactions[11].any()
    alike = interactions @ interactions.T
    within = np.mean([alike[i, j] for i in range(5) for j in range(5) if i != j])
    assert within > alike[:5, 5:10].max() + 0.2
    without = dataclasses.replace(dataset, items=Ragged(np.zeros(0, np.int32), np.zeros(2, int)))
    np.testing.assert_array_equal(interaction_embedding(without), 0.0)
