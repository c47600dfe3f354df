import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data.ad_logs import SPLITS
from ega_jax.data.description import describe
from ega_jax.data.pipeline import eval_batches, open_dataset
from ega_jax.data.schema import validate
from ega_jax.errors import UserError

T, K = 4, 3


def pad(values, width, fill):
    return list(values) + [fill] * (width - len(values))


def expected_row(sessions, row, num_candidates, exposure_weight):
    """One example, by hand."""
    session = {name: values[row] for name, values in sessions.items()}
    num_ads = len(session["ad_poi"])
    shown = session["shown_poi"]
    history = {
        name: ([-1] * T + session[name])[-T:] for name in ("history_poi", "history_creative")
    }
    flags = ("shown_is_ad", "click_poi", "click_image", "convert")
    clicks = zip(session["click_poi"], session["click_image"], strict=True)
    weights = [1.0 if any(pair) else exposure_weight for pair in clicks]
    return {
        **history,
        "item": pad(session["ad_poi"] + session["organic_poi"], num_candidates, -1),
        "is_ad": pad([True] * num_ads, num_candidates, False),
        "bid": np.float32(pad(session["ad_bid"], num_candidates, 0.0)),
        "shown_poi": pad(shown, K, -1),
        "shown_creative": pad(session["shown_creative"], K, -1),
        **{name: pad(session[name], K, False) for name in flags},
        "propensity": np.float32([session["propensity"], 1.0, 1.0]),
        "session": session["session_id"],
        "target_poi": pad(shown, K, -1),
        "target_creative": pad(session["shown_creative"], K, -1),
        "target_weight": np.float32(pad(weights, K, 0.0)),
    }


@pytest.fixture
def dataset(ad_log, tmp_path):
    return open_dataset(ad_log.write(tmp_path / "log"))


def test_catalogue_as_stored(ad_log, dataset):
    np.testing.assert_allclose(dataset.item_embedding, ad_log.pois["embedding"], rtol=1e-6)
    np.testing.assert_allclose(dataset.creative_embedding, ad_log.creatives["embedding"], rtol=1e-6)
    assert dataset.creative_poi.tolist() == ad_log.creatives["poi_id"]


def test_without_creatives_each_poi_stands_for_its_own(ad_log, tmp_path):
    whole = open_dataset(ad_log.write(tmp_path / "whole"))
    for name in ("history_creative", "shown_creative"):
        ad_log.sessions[name] = [[] for _ in ad_log.sessions[name]]
    folder = ad_log.write(tmp_path / "log")
    (folder / "creatives.parquet").unlink()
    dataset = open_dataset(folder)
    np.testing.assert_array_equal(dataset.creative_embedding, dataset.item_embedding)
    assert dataset.creative_poi.tolist() == list(range(12))
    sizes = {"batch_size": 6, "history_length": T}
    found = next(iter(eval_batches(dataset, "test", **sizes)))
    expected = dict(next(iter(eval_batches(whole, "test", **sizes))))
    for name in ("history", "shown", "target"):
        expected[f"{name}_creative"] = expected[f"{name}_poi"]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_examples_equal_those_made_by_hand(ad_log, dataset):
    """40 sessions: 28 to pre-train on, 4 to align, 2 to tune, 6 to test."""
    batches = {
        split: list(
            eval_batches(
                dataset, split, batch_size=7, history_length=T, num_slots=K, exposure_weight=0.25
            )
        )
        for split in SPLITS
    }
    sizes = {split: len(found) for split, found in batches.items()}
    assert sizes == {"pretrain": 4, "align": 1, "tune": 1, "test": 1}
    firsts = {"pretrain": (0, 28), "align": (28, 32), "tune": (32, 34), "test": (34, 40)}
    for split, (start, stop) in firsts.items():
        joined = {
            name: np.concatenate([batch[name] for batch in batches[split]])
            for name in batches[split][0]
        }
        for place, row in enumerate(range(start, stop)):
            expected = expected_row(ad_log.sessions, row, dataset.summary.num_candidates, 0.25)
            assert expected.keys() == joined.keys()
            for name, values in expected.items():
                np.testing.assert_array_equal(joined[name][place], values, err_msg=name)
        assert (joined["session"][stop - start :] == -1).all()


def test_an_organic_item_that_is_an_ad_too_stays_a_candidate(ad_log, tmp_path):
    session = {name: values[0] for name, values in ad_log.sessions.items()}
    ads, organic = session["ad_poi"], session["organic_poi"]
    ad_log.sessions["organic_poi"][0] = [ads[0], *organic[1:]]
    for name in ("shown_poi", "shown_creative", "shown_is_ad", "click_poi", "click_image"):
        ad_log.sessions[name][0] = []
    ad_log.sessions["convert"][0] = []
    log = open_dataset(ad_log.write(tmp_path / "log"))
    batch = next(iter(eval_batches(log, "pretrain", batch_size=1, history_length=T)))
    assert batch["item"][0][: len(ads) + len(organic)].tolist() == [*ads, ads[0], *organic[1:]]


def test_blank_rows_are_empty(dataset):
    (batch,) = eval_batches(dataset, "test", batch_size=8, history_length=T)
    for name, values in batch.items():
        assert (values[6:] == (-1 if values.dtype == np.int32 else 0)).all(), name


def test_dtypes(dataset):
    (batch,) = eval_batches(dataset, "test", batch_size=6, history_length=T)
    kinds = {name: values.dtype.name for name, values in batch.items()}
    for name in ("history_poi", "history_creative", "item", "target_poi", "shown_poi", "session"):
        assert kinds[name] == "int32", name
    for name in ("bid", "target_weight"):
        assert kinds[name] == "float32", name
    for name in ("is_ad", "shown_is_ad", "click_poi", "click_image", "convert"):
        assert kinds[name] == "bool", name


def test_fractions_set_the_splits(ad_log, tmp_path):
    dataset = open_dataset(ad_log.write(tmp_path / "log"), fractions=(0.3, 0.4, 0.1))
    sizes = (("pretrain", 100, 12), ("align", 112, 16), ("tune", 128, 4), ("test", 132, 8))
    for split, first, size in sizes:
        (batch,) = eval_batches(dataset, split, batch_size=size, history_length=T)
        assert batch["session"].tolist() == list(range(first, first + size))


def test_files_may_differ_in_the_types_of_their_columns(ad_log, tmp_path):
    first, second = ad_log.write(tmp_path / "first"), ad_log.write(tmp_path / "second")
    path = second / "sessions" / "part-1.parquet"
    table = pq.read_table(path)
    wide = {pa.list_(pa.int32()): pa.large_list(pa.int64()), pa.int32(): pa.int64()}
    fields = [pa.field(f.name, wide.get(f.type, f.type)) for f in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), path)
    of = lambda folder: eval_batches(
        open_dataset(folder, fractions=(0.3, 0.5, 0.1)), "align", batch_size=20, history_length=T
    )
    (one,), (other,) = of(first), of(second)
    for name, values in one.items():
        np.testing.assert_array_equal(other[name], values, strict=True)


def test_slots_may_be_added_but_not_taken(dataset):
    (batch,) = eval_batches(dataset, "test", batch_size=6, history_length=T, num_slots=5)
    assert batch["shown_poi"].shape == (6, 5)
    assert (batch["target_weight"][:, 3:] == 0).all()
    with pytest.raises(ValueError, match="num_slots=2, but the log's slates have 3 slots"):
        eval_batches(dataset, "test", batch_size=4, history_length=T, num_slots=2)


def test_a_split_without_rows_is_named(ad_log, tmp_path):
    log = open_dataset(ad_log.write(tmp_path / "log"), fractions=(0.5, 0.25, 0.25))
    with pytest.raises(UserError, match="split 'test' has no rows"):
        eval_batches(log, "test", batch_size=6, history_length=T)


@pytest.mark.parametrize("fractions", [(-0.1, 0.5, 0.1), (0.8, 0.1, 0.2)])
def test_fractions_that_are_no_shares_are_named(ad_log, tmp_path, fractions):
    with pytest.raises(UserError, match=r"data.fractions is \(.*\): three shares"):
        open_dataset(ad_log.write(tmp_path / "log"), fractions=fractions)


def test_a_split_to_train_on_that_shows_nothing_is_refused(ad_log, tmp_path):
    shown = [name for name in ad_log.sessions if name.startswith(("shown", "click", "convert"))]
    for name in shown:
        ad_log.sessions[name][:28] = [[] for _ in range(28)]
    ad_log.sessions.pop("propensity", None)
    folder = ad_log.write(tmp_path / "log")
    with pytest.raises(
        UserError, match=r"'shown_poi': nothing was shown .*, the first 28 sessions"
    ):
        open_dataset(folder)
    with pytest.raises(
        UserError, match=r"'shown_poi': nothing was shown .*, the first 28 sessions"
    ):
        describe(folder, validate(folder), (0.7, 0.1, 0.05))
    assert open_dataset(folder, fractions=(0.9, 0.05, 0.05)).summary.num_rows == 40
