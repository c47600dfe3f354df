"""Every training sequence comes whole, once per epoch, beside others of its length."""

import numpy as np
from tiny_sequences import dataset_of, trained_on

from ega_jax.baselines.whole_sequences import training_batches
from ega_jax.data.length_sorted import WINDOW

P, T, B = 12, 8, 4


def test_an_epoch_has_the_whole_training_part_of_every_sequence():
    rng = np.random.default_rng(3)
    long_enough = [rng.integers(0, P, 4 + u % 11).tolist() for u in range(WINDOW * B)]
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
    assert sorted(found) == sorted(trained_on(sequence)[-T - 1 :] for sequence in long_enough)
    assert widths == {T // 4, T // 2, T}
