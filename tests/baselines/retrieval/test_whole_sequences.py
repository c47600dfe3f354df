"""Every training sequence comes whole, once per epoch, beside others of its length."""

from collections import Counter

import numpy as np
from tiny_sequences import dataset_of, trained_on

from ega_jax.baselines.retrieval.whole_sequences import _whole_sequences, training_batches
from ega_jax.data.length_sorted import WINDOW

P, T, B = 12, 8, 4


def test_of_a_long_sequence_every_item_but_the_first_follows_those_before_it_once():
    sequences = [list(range(length)) for length in (3, 4, T + 3, T + 4, 3 * T + 2, 40)]
    dataset = dataset_of(sequences, 40)
    arrays = _whole_sequences(dataset, T)
    rows = np.concatenate([arrays["history_poi"], arrays["target_poi"]], axis=1)
    rows = [[item for item in row if item >= 0] for row in rows.tolist()]
    assert all(np.all(np.diff(row) == 1) for row in rows)
    found = Counter(item for row in rows for item in row[1:])
    expected = Counter(item for sequence in sequences for item in trained_on(sequence)[1:])
    assert found == expected


def test_an_epoch_has_the_whole_training_part_of_every_sequence():
    rng = np.random.default_rng(3)
    long_enough = [rng.integers(0, P, 4 + u % (T - 1)).tolist() for u in range(WINDOW * B)]
    too_short = [[1], [2, 3, 4]]
    dataset = dataset_of([*too_short, *long_enough], P)
    batches = iter(training_batches(dataset, batch_size=B, history_length=T, seed=0))
    found, widths = [], set()
    for _ in range(WINDOW):
        batch = next(batches)
        widths.add(batch["history_poi"].shape[1])
        assert np.all(np.diff((batch["history_poi"] >= 0).astype(int)) >= 0), (
            "padding is on the left"
        )
        rows = np.concatenate([batch["history_poi"], batch["target_poi"]], axis=1).tolist()
        found += [[item for item in row if item >= 0] for row in rows]
    assert sorted(found) == sorted(map(trained_on, long_enough))
    assert widths == {T // 4, T // 2, T}
