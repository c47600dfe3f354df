"""Sorting by length moves rows between batches and drops padding, nothing else."""

import numpy as np
import pytest

from ega_jax.data.length_sorted import WINDOW, LengthSorted, cut

T, K, B = 8, 4, 6


class Random:
    """Batches of random lengths; the last item of a history names the row."""

    def __len__(self):
        return 3 * WINDOW + 1

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        history, targets = rng.integers(1, T + 1, B), rng.integers(1, K + 1, B)
        row = index * B + np.arange(B)[:, None]
        history_poi = np.where(np.arange(T) >= T - history[:, None], row, -1)
        target_poi = np.where(np.arange(K) < targets[:, None], row, -1)
        return {
            "history_poi": history_poi,
            "history_creative": history_poi,
            "target_poi": target_poi,
            "target_creative": target_poi,
            "target_weight": (target_poi >= 0).astype(np.float32),
        }


def window(seed=0, share=None):
    source = LengthSorted(Random(), share or range(B), seed)
    return [source[WINDOW + place] for place in range(WINDOW)]


def rows_of(batches):
    """`{row: (history length, number of targets)}`."""
    return {
        int(history[-1]): ((history >= 0).sum(), (target >= 0).sum())
        for batch in batches
        for history, target in zip(batch["history_poi"], batch["target_poi"], strict=True)
    }


def test_the_same_rows_with_nothing_but_padding_cut():
    assert rows_of(window()) == rows_of(Random()[WINDOW + place] for place in range(WINDOW))


def test_little_padding_and_few_shapes():
    batches = window()
    shapes = {batch["history_poi"].shape[1:] + batch["target_poi"].shape[1:] for batch in batches}
    assert shapes <= {(t, k) for t in (2, 4, 8) for k in (2, 4)}
    assert len(shapes) > 3
    padding = np.concatenate([(batch["history_poi"] < 0).ravel() for batch in batches]).mean()
    assert padding < np.mean([(Random()[WINDOW + p]["history_poi"] < 0).mean() for p in range(16)])
    for batch in batches:
        assert batch["target_weight"].shape == batch["target_poi"].shape


def test_a_function_of_seed_and_number():
    first, again, other = window(0), window(0), window(1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a["history_poi"], b["history_poi"])
    assert any(
        a["history_poi"].shape != c["history_poi"].shape for a, c in zip(first, other, strict=True)
    )


def test_shares_partition_the_batch():
    whole, left, right = window(), window(share=range(4)), window(share=range(4, B))
    for w, a, b in zip(whole, left, right, strict=True):
        np.testing.assert_array_equal(
            w["target_poi"], np.concatenate([a["target_poi"], b["target_poi"]])
        )


@pytest.mark.parametrize(("length", "width"), [(0, 3), (3, 3), (4, 6), (6, 6), (7, 12), (12, 12)])
def test_cut(length, width):
    assert cut(np.array([length]), 12, shares=(4, 2)) == [width]
