import itertools

import numpy as np
import pytest

from ega_jax.data.pipeline import eval_batches, open_dataset, train_batches


@pytest.fixture(params=["sequences", "ad_log"])
def dataset(request, make_sequences, make_ad_log, tmp_path):
    if request.param == "sequences":
        lengths = tuple(3 + user % 5 for user in range(30))
        return open_dataset(make_sequences(lengths).write(tmp_path / "data"))
    return open_dataset(make_ad_log().write(tmp_path / "data"))


def batches_of(dataset, **arguments):
    split = "train" if dataset.summary.format == "sequences" else "pretrain"
    arguments = {"batch_size": 6, "history_length": 5, "seed": 1} | arguments
    return iter(train_batches(dataset, split, **arguments))


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_same_seed_same_batches(dataset):
    first, again, other = (take(batches_of(dataset, seed=seed), 15) for seed in (4, 4, 5))
    assert_same(first, again)
    pairs = zip(first, other, strict=True)
    assert any((one["history_poi"] != two["history_poi"]).any() for one, two in pairs)


@pytest.mark.parametrize("read", [0, 1, 7, 20])
def test_a_saved_state_resumes_exactly(dataset, read):
    batches = batches_of(dataset)
    take(batches, read)
    state = batches.get_state()
    remaining = take(batches, 12)
    fresh = batches_of(dataset)
    fresh.set_state(state)
    assert_same(take(fresh, 12), remaining)


def test_the_state_can_go_back(dataset):
    batches = batches_of(dataset)
    state = batches.get_state()
    first = take(batches, 4)
    batches.set_state(state)
    assert_same(take(batches, 4), first)


def test_shards_partition_each_batch(dataset):
    whole = take(batches_of(dataset), 9)
    shards = [
        take(batches_of(dataset, process_index=index, process_count=3), 9) for index in range(3)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    assert_same(joined, whole)


def test_shards_of_an_evaluation(dataset):
    """The last batch holds one row, so the second shard's part of it is blank."""
    size = 5 if dataset.summary.format == "ad_log" else 29
    arguments = {"batch_size": 2 * size, "history_length": 5}
    whole = list(eval_batches(dataset, "test", **arguments))
    first, second = (
        list(eval_batches(dataset, "test", process_index=index, process_count=2, **arguments))
        for index in range(2)
    )
    assert len(whole) == len(first) == len(second) == 1
    joined = {name: np.concatenate([first[0][name], second[0][name]]) for name in whole[0]}
    assert_same([joined], whole)
    assert (second[0]["history_poi"][1:] == -1).all()


def test_every_session_comes_once_per_epoch(make_ad_log, tmp_path):
    dataset = open_dataset(make_ad_log().write(tmp_path / "log"), fractions=(1.0, 0.0, 0.0))
    sessions = np.concatenate([b["session"] for b in take(batches_of(dataset, batch_size=8), 15)])
    epochs = sessions.reshape(3, 40)
    for epoch in epochs:
        assert sorted(epoch) == list(range(100, 140))
    assert (epochs[0] != epochs[1]).any()


def test_batches_may_span_epochs(make_ad_log, tmp_path):
    dataset = open_dataset(
        make_ad_log(num_sessions=5).write(tmp_path / "log"), fractions=(1.0, 0.0, 0.0)
    )
    (batch,) = take(batches_of(dataset, batch_size=20), 1)
    assert [sorted(part) for part in batch["session"].reshape(4, 5)] == [list(range(100, 105))] * 4


def test_uneven_shards_are_refused(dataset):
    with pytest.raises(ValueError, match="batch_size=6 does not divide by 4 processes"):
        batches_of(dataset, process_count=4)


def test_some_batches_of_an_evaluation_are_spread_over_the_split(dataset):
    arguments = {"batch_size": 1, "history_length": 5}
    whole = list(eval_batches(dataset, "test", **arguments))
    some = list(eval_batches(dataset, "test", max_batches=2, **arguments))
    stride = -(-len(whole) // 2)
    assert len(whole) > 2
    assert_same(some, whole[::stride])
