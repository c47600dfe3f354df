import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data import checks, schema
from ega_jax.data.tables import DataError

FLOATS = pa.list_(pa.float32())


def set_value(table, column, row, value):
    def spoil(dataset):
        getattr(dataset, table)[column][row] = value

    return spoil


def set_first(column, row, value):
    def spoil(dataset):
        dataset.sessions[column][row][0] = value

    return spoil


def set_type(column, kind):
    def spoil(dataset):
        dataset.types[column] = kind

    return spoil


def drop(table, column):
    def spoil(dataset):
        del getattr(dataset, table)[column]

    return spoil


def too_many_shown(dataset):
    for name in ("shown_poi", "shown_creative", "shown_is_ad", "click_poi", "click_image"):
        dataset.sessions[name][4] = dataset.sessions[name][4][:1] * 4
    dataset.sessions["convert"][4] = [False] * 4


def set_text(table, column):
    def spoil(dataset):
        columns = getattr(dataset, table)
        columns[column] = [str(value) for value in columns[column]]
        dataset.types[column] = pa.string()
        dataset.creatives["embedding"] = columns[column] * 2

    return spoil


def show(dataset, row, count, flags):
    """Makes a slate of the first candidate, `count` times, and nothing clicked."""
    sessions = dataset.sessions
    sessions["shown_poi"][row] = sessions["ad_poi"][row][:1] * count
    sessions["shown_creative"][row] = [2 * poi for poi in sessions["shown_poi"][row]]
    for name in ("shown_is_ad", "click_poi", "click_image", "convert"):
        sessions[name][row] = [flags[name]] * count


IMPRESSION = {"shown_is_ad": True, "click_poi": False, "click_image": False, "convert": False}


def shown_twice(dataset):
    show(dataset, 27, 2, IMPRESSION)


def nothing_shown(dataset):
    for row in range(40):
        show(dataset, row, 0, IMPRESSION)


def no_ads(dataset):
    sessions = dataset.sessions
    for row in range(40):
        for name in ("ad_poi", "ad_bid"):
            sessions[name][row] = []
        for name in ("shown_poi", "shown_creative", *IMPRESSION):
            sessions[name][row] = sessions[name][row][1:]


def no_sessions(dataset):
    dataset.sessions = {name: [] for name in dataset.sessions}


def swap_times(dataset):
    dataset.sessions["timestamp"][25] = 5


def shuffle_ids(dataset):
    dataset.pois["poi_id"][2:4] = [3, 2]


def too_large_a_bid(dataset):
    dataset.types["ad_bid"] = pa.list_(pa.float64())
    set_first("ad_bid", 7, 1e39)(dataset)


# Files of sessions hold 25 rows: session 30 is row 5 of the second.
AD_LOG_FAULTS = {
    "poi id": (
        set_value("sessions", "ad_poi", 30, [12]),
        "part-1.parquet, column 'ad_poi', row 5: POI ids must be in 0..11, found 12",
    ),
    "negative poi id": (
        set_value("sessions", "history_poi", 3, [-1]),
        "part-0.parquet, column 'history_poi', row 3: POI ids must be in 0..11, found -1",
    ),
    "creative id": (
        set_value("sessions", "shown_creative", 0, [24, 0, 0]),
        "part-0.parquet, column 'shown_creative', row 0: creative ids must be in 0..23, found 24",
    ),
    "owner id": (
        set_value("creatives", "poi_id", 7, 12),
        "creatives.parquet, column 'poi_id', row 7: POI ids must be in 0..11, found 12",
    ),
    "creative of another poi": (
        set_value("creatives", "poi_id", slice(None), [0] * 24),
        "part-0.parquet, column 'history_creative', row 0: "
        "a creative must belong to its 'history_poi'",
    ),
    "nan feature": (
        set_value("pois", "embedding", 5, [0.0, math.nan, 0.0, 0.0]),
        "pois.parquet, column 'embedding', row 5: features must be finite",
    ),
    "infinite feature": (
        set_value("creatives", "embedding", 9, [0.0, math.inf, 0.0, 0.0]),
        "creatives.parquet, column 'embedding', row 9: features must be finite",
    ),
    "null feature": (
        set_value("pois", "embedding", 1, [0.0, None, 0.0, 0.0]),
        "pois.parquet, column 'embedding', row 1: features must be finite",
    ),
    "null embedding": (
        set_value("pois", "embedding", 1, None),
        "pois.parquet, column 'embedding', row 1: nulls are not allowed",
    ),
    "negative bid": (
        set_first("ad_bid", 7, -0.5),
        "part-0.parquet, column 'ad_bid', row 7: bids must be from 0 to 1e+30, found -0.5",
    ),
    "nan bid": (
        set_first("ad_bid", 7, math.nan),
        "part-0.parquet, column 'ad_bid', row 7: bids must be from 0 to 1e+30, found nan",
    ),
    "bid beyond float32": (
        too_large_a_bid,
        "part-0.parquet, column 'ad_bid', row 7: bids must be from 0 to 1e+30, found 1e+39",
    ),
    "ad twice": (
        set_value("sessions", "ad_poi", 31, [3, 3]),
        "part-1.parquet, column 'ad_poi', row 6: a candidate must come once, found 3",
    ),
    "bids and ads": (
        set_value("sessions", "ad_bid", 31, [0.5] * 5),
        "part-1.parquet, column 'ad_bid', row 6: "
        "a list must be as long as that of 'ad_poi', found 5",
    ),
    "histories": (
        set_value("sessions", "history_creative", 1, [0] * 20),
        "column 'history_creative', row 1: a list must be as long as that of 'history_poi'",
    ),
    "shown creatives": (
        set_value("sessions", "shown_creative", 1, []),
        "column 'shown_creative', row 1: a list must be as long as that of 'shown_poi', found 0",
    ),
    "ad flags": (
        set_value("sessions", "shown_is_ad", 1, [True] * 4),
        "column 'shown_is_ad', row 1: a list must be as long as that of 'shown_poi', found 4",
    ),
    "click on nothing": (
        set_value("sessions", "click_poi", 1, [True] * 4),
        "column 'click_poi', row 1: a list must be as long as that of 'shown_poi', found 4",
    ),
    "conversion without click": (
        lambda dataset: dataset.sessions.update(click_poi=dataset.sessions["click_image"]),
        "column 'convert', row 0: a conversion needs a click",
    ),
    "too many shown": (
        too_many_shown,
        "part-0.parquet, column 'shown_poi', row 4: at most 3 items fit the slots, found 4",
    ),
    "time order over files": (
        swap_times,
        # The second file begins first.
        "part-0.parquet, column 'timestamp', row 0: rows must be in time order over all files; "
        "the rows before, of {folder}/sessions/part-1.parquet, end at 1019, found 1000",
    ),
    "time order in a file": (
        set_value("sessions", "timestamp", 8, 5),
        "part-0.parquet, column 'timestamp', row 8: rows must be in time order, found 5",
    ),
    "id order": (
        shuffle_ids,
        "pois.parquet, column 'poi_id', row 2: ids must equal the row number, found 3",
    ),
    "ad that is no candidate": (
        set_value("sessions", "organic_poi", 2, []),
        "column 'shown_poi', row 2: a shown item must be in its 'organic_poi'",
    ),
    "organic item as ad": (
        set_value("sessions", "shown_is_ad", 2, [True] * 3),
        "column 'shown_poi', row 2: a shown item must be in its 'ad_poi'",
    ),
    "propensity": (
        set_value("sessions", "propensity", 2, 0.0),
        "column 'propensity', row 2: propensities must be in (0, 1], found 0.0",
    ),
    "session id": (
        set_value("sessions", "session_id", 2, 2**31),
        "column 'session_id', row 2: session ids must be in 0..2147483647, found 2147483648",
    ),
    "null list": (
        set_value("sessions", "history_poi", 11, None),
        "column 'history_poi', row 11: nulls are not allowed",
    ),
    "null in a list": (
        set_value("sessions", "organic_poi", 11, [None]),
        "column 'organic_poi', row 11: a list may not hold nulls",
    ),
    "missing column": (
        drop("sessions", "ad_bid"),
        "part-0.parquet, column 'ad_bid': the column is missing (a list of floats)",
    ),
    "wrong type": (
        set_type("ad_poi", FLOATS),
        "column 'ad_poi': the column must be a list of integers, found list<",
    ),
    "text for an embedding": (
        set_text("pois", "embedding"),
        "pois.parquet, column 'embedding': the column must be a list of floats, found string",
    ),
    "embedding of another length": (
        lambda dataset: (
            set_type("embedding", pa.list_(pa.float64()))(dataset),
            set_value("pois", "embedding", 6, [1.0, 2.0, 3.0])(dataset),
        ),
        "pois.parquet, column 'embedding', row 6: "
        "embeddings must have one length, that of the first row, 4, found 3",
    ),
    "short and, further down, empty embeddings": (
        lambda dataset: (
            set_type("embedding", pa.list_(pa.float64()))(dataset),
            set_value("pois", "embedding", 3, [1.0])(dataset),
            set_value("pois", "embedding", 6, [])(dataset),
        ),
        "pois.parquet, column 'embedding', row 3: "
        "embeddings must have one length, that of the first row, 4, found 1",
    ),
    "empty embeddings": (
        lambda dataset: (
            set_type("embedding", FLOATS)(dataset),
            set_value("creatives", "embedding", slice(None), [[]] * 24)(dataset),
        ),
        "creatives.parquet, column 'embedding', row 0: an embedding must have at least one value",
    ),
    "embeddings beyond float32": (
        lambda dataset: (
            set_type("embedding", pa.list_(pa.float64()))(dataset),
            set_value("pois", "embedding", 6, [1.0, 1e39, 3.0, 4.0])(dataset),
        ),
        "pois.parquet, column 'embedding', row 6: features must be finite",
    ),
    "nulls in place of embeddings": (
        lambda dataset: (
            set_type("embedding", pa.null())(dataset),
            set_value("pois", "embedding", slice(None), [None] * 12)(dataset),
            set_value("creatives", "embedding", slice(None), [None] * 24)(dataset),
        ),
        "pois.parquet, column 'embedding', row 0: nulls are not allowed",
    ),
    "embeddings all alike": (
        set_value("creatives", "embedding", slice(None), [[0.1, 0.2, 0.3, 0.4]] * 24),
        "creatives.parquet, column 'embedding': embeddings may not be the same in every row",
    ),
    "embeddings alike but for rounding": (
        set_value(
            "pois", "embedding", slice(None), [[1.0, 2.0, 3.0, 4 + 1e-6]] + [[1, 2, 3, 4]] * 11
        ),
        "pois.parquet, column 'embedding': embeddings may not be the same in every row",
    ),
    "item shown twice": (
        shown_twice,
        "part-1.parquet, column 'shown_poi', row 2: an item is shown once, found",
    ),
    "nothing shown": (
        nothing_shown,
        "sessions, column 'shown_poi': nothing was shown in any session",
    ),
    "no ads": (no_ads, "sessions, column 'ad_poi': no session has an ad"),
    "no creatives": (
        lambda dataset: dataset.creatives.update(creative_id=[], poi_id=[], embedding=[]),
        "creatives.parquet: the file has no rows",
    ),
    "null for a flag": (
        set_value("sessions", "click_poi", 5, [None, True, True]),
        "part-0.parquet, column 'click_poi', row 5: a list may not hold nulls",
    ),
    "flags that are neither": (
        lambda dataset: (
            set_type("convert", pa.list_(pa.int8()))(dataset),
            dataset.sessions.update(
                convert=[[2] * len(row) for row in dataset.sessions["convert"]]
            ),
        ),
        "part-0.parquet, column 'convert', row 0: flags must be true or false, 1 or 0, found 2",
    ),
    "no sessions": (no_sessions, "sessions: the folder holds no Parquet file"),
}

SEQUENCE_FAULTS = {
    "item id": (
        set_value("sequences", "items", 3, [0, 1, 2, 15]),
        "sequences.parquet, column 'items', row 3: item ids must be in 0..14, found 15",
    ),
    "id order": (
        set_value("items", "item_id", 3, 4),
        "items.parquet, column 'item_id', row 3: ids must equal the row number, found 4",
    ),
    "nan image": (
        set_value("items", "image_embedding", 3, [math.nan] * 4),
        "items.parquet, column 'image_embedding', row 3: features must be finite",
    ),
    "timestamps of another length": (
        set_value("sequences", "timestamps", 3, [0] * 5),
        "column 'timestamps', row 3: a list must be as long as that of 'items', found 5",
    ),
    "unsorted timestamps": (
        set_value("sequences", "timestamps", 3, [0, 2, 1, 3]),
        "column 'timestamps', row 3: a sequence must be in time order, found 1",
    ),
    "empty sequence": (
        lambda dataset: dataset.sequences.update(items=[[]] * 8, timestamps=[[]] * 8),
        "sequences.parquet, column 'items', row 0: a sequence may not be empty",
    ),
    "nothing to hold out": (
        lambda dataset: dataset.sequences.update(items=[[1, 2]] * 8, timestamps=[[1, 2]] * 8),
        "column 'items': no sequence has 3 items, so none can be evaluated; the longest has 2",
    ),
    "nothing to train on": (
        lambda dataset: dataset.sequences.update(items=[[1, 2, 3]] * 8, timestamps=[[1, 2, 3]] * 8),
        "column 'items': no sequence has two items to train on once the last two are held out",
    ),
    "images all alike": (
        set_value("items", "image_embedding", slice(None), [[0.0] * 4] * 15),
        "items.parquet, column 'image_embedding': embeddings may not be the same in every row",
    ),
    "no items": (
        lambda dataset: dataset.items.update(
            item_id=[], embedding=[], title=[], image_embedding=[]
        ),
        "items.parquet: the file has no rows",
    ),
    "no sequences": (
        lambda dataset: dataset.sequences.update(user_id=[], items=[], timestamps=[]),
        "sequences.parquet: the file has no rows",
    ),
    "missing column": (
        drop("sequences", "items"),
        "sequences.parquet, column 'items': the column is missing (a list of integers)",
    ),
}


@pytest.mark.parametrize("fault", AD_LOG_FAULTS)
def test_a_malformed_ad_log_is_named(ad_log, tmp_path, fault):
    spoil, message = AD_LOG_FAULTS[fault]
    spoil(ad_log)
    message = message.replace("{folder}", str(tmp_path / "log"))
    with pytest.raises(DataError, match=re.escape(message)):
        schema.validate(ad_log.write(tmp_path / "log"))


@pytest.mark.parametrize(
    "fault", ["nan feature", "bids and ads", "ad flags", "time order in a file"]
)
def test_rows_are_numbered_when_read_in_parts(ad_log, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(checks, "_ROWS_AT_A_TIME", 4)
    test_a_malformed_ad_log_is_named(ad_log, tmp_path, fault)


@pytest.mark.parametrize("fault", SEQUENCE_FAULTS)
def test_malformed_sequences_are_named(make_sequences, tmp_path, fault):
    dataset = make_sequences()
    spoil, message = SEQUENCE_FAULTS[fault]
    spoil(dataset)
    with pytest.raises(DataError, match=re.escape(message)):
        schema.validate(dataset.write(tmp_path / "sequences"))


def test_summary_of_an_ad_log(ad_log, tmp_path):
    calls = []
    folder = ad_log.write(tmp_path / "log")
    summary = schema.validate(folder, progress=lambda done, total: calls.append((done, total)))
    sessions = ad_log.sessions
    assert summary == schema.Summary(
        format="ad_log",
        num_items=12,
        num_creatives=24,
        embedding_width=4,
        creative_width=4,
        num_rows=40,
        num_actions=sum(map(len, sessions["shown_poi"])),
        num_slots=3,
        num_candidates=max(
            len(ads) + len(organic)
            for ads, organic in zip(sessions["ad_poi"], sessions["organic_poi"], strict=True)
        ),
        longest_history=max(map(len, sessions["history_poi"])),
        num_books=0,
        most_ads=max(map(len, sessions["ad_poi"])),
        most_organic=max(map(len, sessions["organic_poi"])),
    )
    assert calls[-1] == (40, 40)
    assert "num_candidates: " in str(summary)


def test_summary_of_sequences(make_sequences, tmp_path):
    summary = schema.validate(make_sequences(images=False).write(tmp_path / "sequences"))
    assert (summary.format, summary.num_items, summary.num_creatives) == ("sequences", 15, 0)
    assert (summary.num_rows, summary.num_actions, summary.longest_history) == (8, 33, 9)
    assert (summary.num_books, summary.most_ads, summary.most_organic) == (0, 0, 0)


def test_a_page_that_cannot_be_read_is_named(ad_log, tmp_path):
    folder = ad_log.write(tmp_path / "log")
    (path,) = sorted((folder / "sessions").glob("*.parquet"))[:1]
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)  # The footer, at the end, stays.
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name}: unreadable from row 0 on"):
        schema.validate(folder)


def test_slots_are_declared_given_or_inferred(ad_log, tmp_path):
    folder = ad_log.write(tmp_path / "log", num_slots=7)
    assert schema.validate(folder).num_slots == 7
    assert schema.validate(folder, num_slots=5).num_slots == 5
    with pytest.raises(DataError, match="at most 2 items fit the slots"):
        schema.validate(folder, num_slots=2)
    (folder / "dataset.json").unlink()
    assert schema.validate(folder).num_slots == 3


def without_creatives(folder, columns=("history_creative", "shown_creative")):
    """Takes the creatives, and the columns that name them, out of a folder."""
    (folder / "creatives.parquet").unlink()
    for path in (folder / "sessions").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(list(columns)), path)
    return folder


def test_a_log_may_lack_creatives(ad_log, tmp_path):
    summary = schema.validate(without_creatives(ad_log.write(tmp_path / "log")))
    assert not summary.has_creatives
    assert (summary.num_creatives, summary.creative_width) == (12, 4)
    assert (summary.num_rows, summary.num_slots) == (40, 3)


def test_sessions_without_creatives_may_have_blank_columns(ad_log, tmp_path):
    for name in ("history_creative", "shown_creative"):
        ad_log.sessions[name] = [[] for _ in ad_log.sessions[name]]
    folder = without_creatives(ad_log.write(tmp_path / "log"), columns=())
    assert not schema.validate(folder).has_creatives


@pytest.mark.parametrize("left", ["history_creative", "shown_creative"])
def test_creatives_that_do_not_exist_are_named(ad_log, tmp_path, left):
    columns = {"history_creative", "shown_creative"} - {left}
    folder = without_creatives(ad_log.write(tmp_path / "log"), columns)
    rule = (
        rf"log/creatives.parquet: the file does not exist, but .*part-\d.parquet, column '{left}' "
    )
    with pytest.raises(DataError, match=rule):
        schema.validate(folder)


def test_optional_columns_may_be_absent(ad_log, tmp_path):
    del ad_log.sessions["propensity"], ad_log.pois["title"]
    assert schema.validate(ad_log.write(tmp_path / "log")).num_rows == 40


def test_wide_types_are_accepted(ad_log, tmp_path):
    ad_log.types |= {"ad_poi": pa.large_list(pa.int64()), "ad_bid": pa.list_(pa.float64())}
    ad_log.types |= {"embedding": pa.list_(pa.float16(), 4)}
    for table in (ad_log.pois, ad_log.creatives):
        table["embedding"] = np.float16(table["embedding"]).tolist()
    assert schema.validate(ad_log.write(tmp_path / "log")).num_rows == 40


def test_missing_folders_and_files(ad_log, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: the folder does not exist"):
        schema.validate(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"not a dataset: expected items"):
        schema.validate(tmp_path)
    folder = ad_log.write(tmp_path / "log")
    (folder / "creatives.parquet").unlink()
    with pytest.raises(DataError, match=r"creatives.parquet: the file does not exist"):
        schema.validate(folder)
    (folder / "pois.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"pois.parquet: not a readable Parquet file"):
        schema.validate(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"num_slots": "six"}', '{"num_slots": 0}'])
def test_a_malformed_description_is_named(ad_log, tmp_path, text):
    folder = ad_log.write(tmp_path / "log")
    (folder / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset.json: "):
        schema.validate(folder)


def test_a_description_may_start_with_a_byte_order_mark(ad_log, tmp_path):
    folder = ad_log.write(tmp_path / "log")
    (folder / "dataset.json").write_text('{"num_slots": 6}\r\n', encoding="utf-8-sig")
    assert schema.validate(folder).num_slots == 6


def test_a_folder_in_place_of_a_description_is_named(ad_log, tmp_path):
    folder = ad_log.write(tmp_path / "log")
    (folder / "dataset.json").unlink(missing_ok=True)
    (folder / "dataset.json").mkdir()
    with pytest.raises(DataError, match=r"dataset.json: not a JSON object"):
        schema.validate(folder)


def test_validation_writes_nothing(ad_log, tmp_path):
    folder = ad_log.write(tmp_path / "log")
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    schema.validate(folder)
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_what_cannot_be_trained_on_may_still_be_valid(ad_log, make_sequences, tmp_path):
    nothing_shown(ad_log)
    ad_log.pois["embedding"] = [[1.0] * 4] * 12
    assert schema.validate(ad_log.write(tmp_path / "log"), for_training=False).num_actions == 0
    folder = make_sequences(lengths=(1, 2)).write(tmp_path / "sequences")
    assert schema.validate(folder, for_training=False).num_actions == 3
