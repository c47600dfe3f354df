import numpy as np
import pytest

from ega_jax.data.pipeline import eval_batches, open_dataset, train_batches


def padded_left(values, width):
    values = list(values)[-width:]
    return [-1] * (width - len(values)) + values


def padded_right(values, width):
    values = list(values)[:width]
    return values + [-1] * (width - len(values))


@pytest.fixture
def raw(make_sequences):
    return make_sequences()


@pytest.fixture
def dataset(raw, tmp_path):
    return open_dataset(raw.write(tmp_path / "sequences"))


def test_items_as_stored(raw, dataset):
    np.testing.assert_allclose(dataset.item_embedding, raw.items["embedding"], rtol=1e-6)
    np.testing.assert_allclose(dataset.creative_embedding, raw.items["image_embedding"], rtol=1e-6)
    assert dataset.item_embedding.dtype == np.float32
    assert dataset.creative_poi.tolist() == list(range(15))


@pytest.mark.parametrize(("split", "from_end"), [("test", 1), ("validation", 2)])
def test_leave_one_out(raw, dataset, split, from_end):
    (batch,) = eval_batches(dataset, split, batch_size=8, history_length=4, num_slots=2)
    expected = [sequence for sequence in raw.sequences["items"] if len(sequence) >= 3]
    for row, sequence in enumerate(expected):
        assert batch["history_poi"][row].tolist() == padded_left(sequence[:-from_end], 4)
        assert batch["target_poi"][row].tolist() == [sequence[-from_end], -1]
        assert batch["target_weight"][row].tolist() == [1.0, 0.0]
    for row in range(len(expected), 8):
        assert (batch["history_poi"][row] == -1).all()
        assert (batch["target_poi"][row] == -1).all()
        assert (batch["target_weight"][row] == 0).all()


def test_training_examples_are_windows_of_the_training_items(raw, dataset):
    training = [s[:-2] if len(s) >= 3 else s for s in raw.sequences["items"]]
    windows = {
        (tuple(padded_left(s[:split], 4)), tuple(padded_right(s[split:], 3)))
        for s in training
        for split in range(1, len(s))
    }
    batches = iter(train_batches(dataset, "train", batch_size=5, history_length=4, num_slots=3))
    seen = set()
    for _ in range(80):
        batch = next(batches)
        seen |= {
            (tuple(history), tuple(target))
            for history, target in zip(
                batch["history_poi"].tolist(), batch["target_poi"].tolist(), strict=True
            )
        }
        np.testing.assert_array_equal(batch["target_weight"], batch["target_poi"] >= 0)
    assert seen == windows


def test_an_epoch_draws_one_window_of_every_trainable_sequence(make_sequences, tmp_path):
    raw = make_sequences(lengths=(5,) * 7 + (1, 3), num_items=100)
    raw.sequences["items"] = [
        [10 * user + place for place in range(len(items))]
        for user, items in enumerate(raw.sequences["items"])
    ]
    dataset = open_dataset(raw.write(tmp_path / "sequences"))
    batches = iter(train_batches(dataset, "train", batch_size=7, history_length=2, num_slots=1))
    splits = []
    for _ in range(20):
        target = next(batches)["target_poi"][:, 0]
        assert sorted(target // 10) == list(range(7))
        splits.append(tuple(target % 10))
    assert len(set(splits)) > 10


def test_creatives_are_the_items_where_there_are_images(dataset):
    batch = next(iter(train_batches(dataset, "train", batch_size=4, history_length=5)))
    np.testing.assert_array_equal(batch["history_creative"], batch["history_poi"])
    np.testing.assert_array_equal(batch["target_creative"], batch["target_poi"])


def test_creatives_are_empty_without_images(make_sequences, tmp_path):
    dataset = open_dataset(make_sequences(images=False).write(tmp_path / "sequences"))
    assert dataset.creative_embedding.shape == (0, 0)
    assert dataset.creative_poi.shape == (0,)
    batch = next(iter(train_batches(dataset, "train", batch_size=4, history_length=5)))
    assert (batch["history_poi"] >= 0).any()
    assert (batch["history_creative"] == -1).all()
    assert (batch["target_creative"] == -1).all()


def test_splits_are_named_when_mistaken(dataset):
    with pytest.raises(ValueError, match="no split 'test' here; valid: train"):
        train_batches(dataset, "test", batch_size=4, history_length=5)
    with pytest.raises(ValueError, match="no split 'train' here; valid: validation, test"):
        eval_batches(dataset, "train", batch_size=4, history_length=5)
