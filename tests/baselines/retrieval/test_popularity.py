"""Counts by a loop; held-out items do not count."""

from collections import Counter

import numpy as np
from tiny_sequences import dataset_of, random_sequences, trained_on

from ega_jax.baselines.retrieval.popularity import Popularity

SEQUENCES = random_sequences(0, num_users=30, num_items=9, longest=7)


def test_counts_what_is_for_training():
    found = Popularity.fit(dataset_of(SEQUENCES, 11))
    expected = Counter(item for sequence in SEQUENCES for item in trained_on(sequence))
    np.testing.assert_array_equal(found.counts, [expected[item] for item in range(11)])


def test_held_out_items_change_nothing():
    changed = [s if len(s) < 3 else [*s[:-2], 10, 10] for s in SEQUENCES]
    counts = [Popularity.fit(dataset_of(s, 11)).counts for s in (SEQUENCES, changed)]
    np.testing.assert_array_equal(*counts)


def test_every_history_gets_the_same():
    popularity = Popularity.fit(dataset_of([[3, 3, 1, 0, 0], [2, 3]], 4))
    scores = popularity.scores(np.array([[-1, 3], [0, 1], [-1, -1]], np.int32))
    np.testing.assert_array_equal(scores, [[0, 1, 1, 3]] * 3)
