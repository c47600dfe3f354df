"""The figures of a folder against loops, and what is warned of."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data import checks
from ega_jax.data.description import describe
from ega_jax.data.schema import validate


def described(folder, fractions=(0.7, 0.1, 0.1)):
    return describe(folder, validate(folder), fractions)


def warned(folder, words):
    return [warning for warning in described(folder).warnings if words in warning]


def by_slot(sessions, name):
    """Rates by a loop over slots."""
    rates = []
    for slot in range(3):
        flags = [row[slot] for row in sessions[name] if len(row) > slot]
        rates.append(sum(flags) / len(flags))
    return rates


@pytest.mark.parametrize("rows_at_a_time", [7, 16_384])
def test_figures_of_an_ad_log(ad_log, tmp_path, monkeypatch, rows_at_a_time):
    monkeypatch.setattr(checks, "_ROWS_AT_A_TIME", rows_at_a_time)
    facts = described(ad_log.write(tmp_path / "log")).facts
    sessions = ad_log.sessions
    bids = list(itertools.chain(*sessions["ad_bid"]))
    flat = lambda name: list(itertools.chain(*sessions[name]))
    assert (facts["sessions"], facts["POIs"], facts["creatives"]) == (40, 12, 24)
    assert facts["creatives per POI"] == {"mean": 2.0, "median": 2, "90 %": 2, "most": 2}
    assert facts["users"] == len(set(sessions["user_id"]))
    assert facts["history length (T)"]["most"] == max(map(len, sessions["history_poi"]))
    assert facts["history length (T)"]["mean"] == np.mean([*map(len, sessions["history_poi"])])
    assert facts["slots (K)"] == 3
    pairs = zip(sessions["ad_poi"], sessions["organic_poi"], strict=True)
    assert facts["candidates per request"]["mean"] == np.mean([len(a) + len(o) for a, o in pairs])
    assert facts["ads per slate"]["mean"] == 1.0
    assert facts["CTR of the POI by slot"] == pytest.approx(by_slot(sessions, "click_poi"))
    assert facts["CTR of the creative by slot"] == [0.0, 0.0, 0.0]
    assert facts["CTR of the POI"] == pytest.approx(np.mean(flat("click_poi")))
    assert facts["clicks"] == facts["conversions"] == sum(flat("convert"))
    assert facts["bid"]["50 %"] == pytest.approx(np.median(bids), rel=1e-6)
    assert facts["bid"]["100 %"] == pytest.approx(max(bids), rel=1e-6)
    assert facts["first time"] == "1970-01-01 00:16:40 (1000)"
    assert facts["split"] == {"pretrain": 28, "align": 4, "tune": 4, "test": 4}


def test_a_log_without_creatives_and_histories_is_described(ad_log, tmp_path):
    for name in ("history_poi", "history_creative", "shown_creative"):
        ad_log.sessions[name] = [[] for _ in ad_log.sessions[name]]
    ad_log.sessions["ad_bid"] = [[2.0] * len(bids) for bids in ad_log.sessions["ad_bid"]]
    folder = ad_log.write(tmp_path / "log")
    (folder / "creatives.parquet").unlink()
    found = described(folder)
    assert found.facts["creatives"] == 0
    assert "creatives per POI" not in found.facts
    for words in ("every history is empty", "the log has no creatives", "every bid is the same"):
        assert sum(words in warning for warning in found.warnings) == 1, words


def test_figures_of_sequences(make_sequences, tmp_path):
    raw = make_sequences()
    found = described(raw.write(tmp_path / "sequences"))
    lengths = [len(items) for items in raw.sequences["items"]]
    assert found.facts["sequences"] == len(lengths)
    assert found.facts["actions"] == sum(lengths)
    assert found.facts["sequence length"]["mean"] == np.mean(lengths)
    assert found.facts["images"] == 15
    assert found.facts["split"] == {"train": 5, "validation": 6, "test": 6}
    assert found.facts["last time"] == "1970-01-01 00:00:08 (8)"
    unseen = 15 - len(set(itertools.chain(*raw.sequences["items"])))
    words = f"{unseen} of 15 items are in no sequence"
    assert [w for w in found.warnings if "in no sequence" in w] == [words] * bool(unseen)


def test_a_log_of_dates(ad_log, tmp_path):
    ad_log.types["timestamp"] = pa.timestamp("ms", "Asia/Shanghai")
    ad_log.sessions["timestamp"] = [1_000_000 + 500 * row for row in range(40)]
    facts = described(ad_log.write(tmp_path / "log")).facts
    assert facts["first time"] == "1970-01-01 00:16:40"
    assert facts["last time"] == "1970-01-01 00:16:59"


def test_a_log_without_clicks_is_warned_of(ad_log, tmp_path):
    for name in ("click_poi", "convert"):
        ad_log.sessions[name] = [[False] * len(row) for row in ad_log.sessions[name]]
    warnings = described(ad_log.write(tmp_path / "log")).warnings
    for words in (
        "the split 'pretrain' has no click",
        "the split 'test' has no click",
        "no POI was ever clicked",
        "no creative was ever clicked",
        "there is no conversion",
    ):
        assert words in warnings


def test_clicks_after_training_do_not_count_for_it(ad_log, tmp_path):
    for name in ("click_poi", "convert"):
        rows = ad_log.sessions[name]
        ad_log.sessions[name] = [[row >= 28] * len(rows[row]) for row in range(40)]
    folder = ad_log.write(tmp_path / "log")
    assert warned(folder, "has no click") == ["the split 'pretrain' has no click"]


def test_an_empty_split_is_warned_of(ad_log, tmp_path):
    found = described(ad_log.write(tmp_path / "log"), fractions=(0.5, 0.25, 0.25))
    assert "the split 'test' has no session; see config.data.fractions" in found.warnings


def test_embeddings_that_repeat_or_never_vary_are_warned_of(ad_log, tmp_path):
    vectors = ad_log.pois["embedding"]
    ad_log.pois["embedding"] = [[0.0, 0.0, *vectors[row // 4][2:]] for row in range(12)]
    folder = ad_log.write(tmp_path / "log")
    where = f"{folder}/pois.parquet, column 'embedding'"
    assert warned(folder, "rows repeat") == [f"{where}: 9 of 12 rows repeat an earlier row's"]
    assert warned(folder, "never") == []
    assert warned(folder, "same in") == [f"{where}: 2 of 4 values are the same in every row"]


def test_ordinary_folders_have_no_warnings_of_embeddings(ad_log, tmp_path):
    assert warned(ad_log.write(tmp_path / "log"), "column 'embedding'") == []


def test_columns_that_are_left_out_are_warned_of(make_sequences, tmp_path):
    raw = make_sequences()
    raw.types |= {"timestamps": pa.list_(pa.string()), "title": pa.list_(pa.string())}
    raw.sequences["timestamps"] = [["a"] for _ in raw.sequences["timestamps"]]
    raw.items["title"] = [["a"]] * 15
    folder = raw.write(tmp_path / "sequences")
    words = "left out, a column of list<element: string> is not read"
    assert warned(folder, "left out") == [
        f"{folder}/items.parquet, column 'title': {words}",
        f"{folder}/sequences.parquet, column 'timestamps': {words}",
    ]


def test_a_poi_without_creatives_is_warned_of(ad_log, tmp_path):
    ad_log.pois["poi_id"].append(12)
    ad_log.pois["embedding"].append([1.0, 2.0, 3.0, 4.0])
    ad_log.pois["title"].append("new")
    folder = ad_log.write(tmp_path / "log")
    assert warned(folder, "no creative")[-1] == "1 of 13 POIs have no creative"


def test_a_column_that_only_some_files_have_is_warned_of_once(ad_log, tmp_path):
    folder = ad_log.write(tmp_path / "log", rows_per_file=10)
    for name in ("part-1", "part-3"):
        path = folder / "sessions" / f"{name}.parquet"
        pq.write_table(pq.read_table(path).drop_columns("propensity"), path)
    assert warned(folder, "propensity") == [
        f"{folder}/sessions/part-1.parquet, column 'propensity': left out, "
        "2 of 4 files have no value of it"
    ]
