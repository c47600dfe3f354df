"""Files as Spark, Hive, pandas, polars and DuckDB write them give the data of our own files."""

import datetime
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data.pipeline import eval_batches, open_dataset
from ega_jax.data.schema import validate
from ega_jax.data.tables import DataError

STRIPPED = {"store_schema": False}  # As writers that do not know Arrow.


def rewrite(path, change, **options):
    """Changes the table of a file."""
    pq.write_table(change(pq.read_table(path)), path, **options)


def with_column(name, array):
    return lambda table: table.set_column(table.column_names.index(name), name, array(table[name]))


def batches(folder):
    log = open_dataset(folder)
    read = [
        batch
        for split in ("pretrain", "align", "test")
        for batch in eval_batches(log, split, batch_size=8, history_length=5)
    ]
    catalogue = {
        "poi": log.item_embedding,
        "creative": log.creative_embedding,
        "owner": log.creative_poi,
    }
    return [catalogue, *read]


def assert_same(folder, other):
    for one, two in zip(batches(folder), batches(other), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name, strict=True)


@pytest.fixture
def log(ad_log, tmp_path):
    """A folder, and a copy of it to be written by others."""
    for table in (ad_log.pois, ad_log.creatives):
        table["embedding"] = np.float16(table["embedding"]).tolist()
    folder = ad_log.write(tmp_path / "log")
    shutil.copytree(folder, tmp_path / "other")
    return folder, tmp_path / "other"


def tensors(column):
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 2))
    return pa.ExtensionArray.from_storage(kind, column.combine_chunks())


EMBEDDINGS = {
    "list of doubles": (pa.list_(pa.float64()), {}),
    "large list": (pa.large_list(pa.float32()), {}),
    "list of halves": (pa.list_(pa.float16()), {}),
    "fixed list of doubles": (pa.list_(pa.float64(), 4), {}),
    "fixed list without Arrow's schema": (pa.list_(pa.float32(), 4), STRIPPED),
    "list of decimals": (pa.list_(pa.decimal128(38, 28)), {}),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_of_any_list_type(log, kind):
    folder, other = log
    target, options = EMBEDDINGS[kind]
    for name in ("pois", "creatives"):
        cast = with_column("embedding", lambda column: column.cast(target))
        rewrite(other / f"{name}.parquet", cast, **options)
    assert_same(folder, other)


def test_embeddings_as_tensors(log):
    folder, other = log
    rewrite(other / "pois.parquet", with_column("embedding", tensors))
    assert "tensor" in str(pq.read_schema(other / "pois.parquet").field("embedding").type)
    assert_same(folder, other)


def test_whole_numbers_may_be_embeddings(ad_log, tmp_path):
    ad_log.types["embedding"] = pa.list_(pa.int8())
    for table in (ad_log.pois, ad_log.creatives):
        table["embedding"] = [[row, -row] for row in range(len(table["embedding"]))]
    log = open_dataset(ad_log.write(tmp_path / "log"))
    np.testing.assert_array_equal(log.item_embedding[11], np.float32([11, -11]))


def hive(column):
    """Timestamps with microseconds of a log whose times are seconds."""
    return column.cast(pa.timestamp("s")).cast(pa.timestamp("us", "UTC"))


SESSIONS = {
    "wide": lambda table: table.cast(
        pa.schema(
            [
                pa.field(f.name, pa.large_list(pa.int64()) if "poi" in f.name and
                         pa.types.is_integer(f.type.value_type) else f.type)
                if pa.types.is_list(f.type) else f for f in table.schema
            ]
        )
    ),
    "flags as 0 and 1": lambda table: with_column(
        "click_poi", lambda column: column.cast(pa.list_(pa.int8()))
    )(table),
    "dictionaries": with_column("user_id", lambda column: column.dictionary_encode()),
    "timestamps": with_column("timestamp", hive),
    "nanoseconds": with_column("timestamp", lambda column: hive(column).cast(pa.timestamp("ns"))),
    "unsigned": with_column("session_id", lambda column: column.cast(pa.uint64())),
    "decimals": with_column(
        "session_id", lambda column: column.cast(pa.int32()).cast(pa.decimal128(38, 0))
    ),
    "bids as decimals": with_column(
        "ad_bid", lambda column: column.cast(pa.list_(pa.decimal128(38, 34)))
    ),
    "list views": with_column(
        "ad_poi", lambda column: pa.array(column.to_pylist(), pa.list_view(pa.int32()))
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SESSIONS)
def test_sessions_of_any_types(log, kind):
    folder, other = log
    for path in (other / "sessions").iterdir():
        rewrite(path, SESSIONS[kind])
    assert_same(folder, other)


def test_sessions_without_arrows_schema(log):
    folder, other = log
    for path in (other / "sessions").iterdir():
        rewrite(path, lambda table: table, **STRIPPED)
    assert_same(folder, other)


def test_files_of_different_writers(log):
    folder, other = log
    rewrite(other / "sessions" / "part-0.parquet", SESSIONS["wide"])
    rewrite(other / "sessions" / "part-1.parquet", SESSIONS["flags as 0 and 1"], **STRIPPED)
    assert_same(folder, other)


@pytest.mark.parametrize("kind", [pa.list_(pa.null()), pa.null()])
def test_a_part_without_any_history(ad_log, tmp_path, kind):
    """The second file has rows 25 to 39, and no type for what it holds nothing of."""
    names = ("history_poi", "history_creative")
    for name in names:
        ad_log.sessions[name][25:] = [[]] * 15
    folder = ad_log.write(tmp_path / "log")
    shutil.copytree(folder, tmp_path / "other")
    for name in names:
        value = None if pa.types.is_null(kind) else []
        change = with_column(name, lambda column, value=value: pa.array([value] * 15, kind))
        rewrite(tmp_path / "other" / "sessions" / "part-1.parquet", change)
    assert_same(folder, tmp_path / "other")


def test_a_part_whose_lists_are_all_null(ad_log, tmp_path):
    for name in ("history_poi", "history_creative"):
        ad_log.sessions[name] = [None] * 40
    (tmp_path / "log").mkdir()
    log = open_dataset(ad_log.write(tmp_path / "nulls"))
    batch = next(iter(eval_batches(log, "pretrain", batch_size=8, history_length=3)))
    assert (batch["history_poi"] == -1).all()


def partition(folder, names):
    """Moves the sessions into Hive's folders, files in the reverse order of their names."""
    table = pa.concat_tables(
        pq.read_table(path) for path in sorted((folder / "sessions").iterdir())
    )
    shutil.rmtree(folder / "sessions")
    bounds = np.linspace(0, 40, len(names) + 1).astype(int)
    for name, start, stop in zip(names, bounds, bounds[1:], strict=False):
        path = folder / "sessions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(start, stop - start), path)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["dt=2025-01-01/part-0.parquet", "dt=2025-01-02/part-0.parquet"],
        ["y=2025/m=9/a.parquet", "y=2025/m=10/a.parquet", "y=2026/m=1/a.snappy.parquet"],
        ["part-9.parquet", "part-10.parquet", "part-11.parquet"],
        ["dt=1/000000_0", "dt=1/000001_0", "_dt=2/000000_0"],
        ["x.parquet/b.parquet", "x.parquet/a.parquet"],
    ],
)
def test_partitions_are_read_in_order_of_time(log, names):
    folder, other = log
    assert_same(folder, partition(other, names))


def test_what_writers_leave_beside_their_files_is_ignored(log):
    folder, other = log
    sessions = partition(other, ["dt=1/part-0.parquet", "dt=2/part-0.parquet"]) / "sessions"
    for name in ("_SUCCESS", "_metadata", "_common_metadata", ".part-0.parquet.crc", "notes.txt"):
        (sessions / "dt=1" / name).write_bytes(b"x")
    (sessions / "part-0.parquet.crc").write_bytes(b"x")
    (sessions / "dt=2" / "000001_0").write_bytes(b"")
    for hidden in ("_temporary/0", ".staging", "_delta_log"):
        (sessions / hidden).mkdir(parents=True)
        (sessions / hidden / "part-7.parquet").write_bytes(b"unfinished")
    assert_same(folder, other)


def test_empty_parts_are_left_out(log):
    folder, other = log
    pq.write_table(pa.table({"session_id": pa.array([], pa.null())}),
                   other / "sessions" / "part-00.parquet")  # fmt: skip
    assert_same(folder, other)


def test_parts_that_overlap_in_time_are_refused(log):
    _, other = log
    late = other / "sessions" / "part-1.parquet"
    earlier = with_column("timestamp", lambda column: pa.array([1005] * 15, pa.int64()))
    rewrite(late, earlier)
    with pytest.raises(DataError, match=r"part-1.parquet, .*'timestamp', row 0: .* end at 101"):
        validate(other)


def test_seconds_and_timestamps_cannot_be_ordered(log):
    _, other = log
    rewrite(other / "sessions" / "part-1.parquet", with_column("timestamp", hive))
    with pytest.raises(DataError, match="'timestamp': timestamps cannot be ordered with the int"):
        validate(other)


def split_file(path, starts, names):
    """Makes a folder of parts of a file."""
    table = pq.read_table(path)
    path.unlink()
    path.mkdir()
    for start, stop, name in zip(starts, [*starts[1:], len(table)], names, strict=True):
        pq.write_table(table.slice(start, stop - start), path / name)


def test_catalogues_as_folders_of_parts(log):
    folder, other = log
    split_file(other / "pois.parquet", [0, 5, 9], ["part-9.parquet", "part-10", "c.parquet"])
    split_file(other / "creatives.parquet", [0, 11], ["b.parquet", "a.parquet"])
    (other / "pois.parquet" / "_SUCCESS").touch()
    rewrite(
        other / "pois.parquet" / "part-10",
        with_column("embedding", lambda column: column.cast(pa.list_(pa.float64()))),
    )
    assert_same(folder, other)


def test_ids_are_row_numbers_across_parts(log):
    _, other = log
    split_file(other / "pois.parquet", [0, 5], ["a.parquet", "b.parquet"])
    change = with_column("poi_id", lambda column: pa.array([5, 6, 8, 7, 9, 10, 11], pa.int32()))
    rewrite(other / "pois.parquet" / "b.parquet", change)
    with pytest.raises(DataError, match=r"b.parquet, column 'poi_id', row 2: ids must .* found 8"):
        validate(other)


def test_parts_agree_on_the_width_of_embeddings(log):
    _, other = log
    split_file(other / "pois.parquet", [0, 5], ["a.parquet", "b.parquet"])
    narrow = with_column("embedding", lambda column: pa.array([[1.0, 2.0]] * 7))
    rewrite(other / "pois.parquet" / "b.parquet", narrow)
    with pytest.raises(DataError, match=r"b.parquet, column 'embedding', row 0: .* 4, found 2"):
        validate(other)


def test_sequences_as_folders_of_parts(make_sequences, tmp_path):
    folder, other = (make_sequences().write(tmp_path / name) for name in ("one", "other"))
    split_file(other / "items.parquet", [0, 4], ["b.parquet", "a.parquet"])
    split_file(other / "sequences.parquet", [0, 6], ["part-0.parquet", "part-1.parquet"])
    one, two = open_dataset(folder), open_dataset(other)
    np.testing.assert_array_equal(one.items.values, two.items.values, strict=True)
    np.testing.assert_array_equal(one.items.offsets, two.items.offsets, strict=True)
    np.testing.assert_array_equal(one.creative_embedding, two.creative_embedding, strict=True)


OPTIONAL = {
    "title": (["1", "2"], [1, 2], [[1], [2]], [{"a": 1}, {"a": 2}], [None, None]),
    "categories": (["Bar", "Cafe"], [7, 8], [["Bar"], None], [{"a": 1}, None], [[], []]),
    "image_embedding": (["1", "2"], [None, None], [[], []], [{"a": 1}, None], [True, False]),
    "timestamps": (["1", "2"], [None, None], [[], []], [["a"], ["b"]], [1.5, 2.5]),
}


@pytest.mark.parametrize(
    ("column", "values"), [(name, some) for name, kinds in OPTIONAL.items() for some in kinds]
)
def test_an_optional_column_never_makes_a_folder_unreadable(
    make_sequences, tmp_path, column, values
):
    folder = make_sequences(images=False).write(tmp_path / "sequences")
    path = folder / ("sequences.parquet" if column == "timestamps" else "items.parquet")
    table = pq.read_table(path)
    columns = {name: table[name] for name in table.column_names}
    columns[column] = [values[row % 2] for row in range(len(table))]
    pq.write_table(pa.table(columns), path)
    dataset = open_dataset(folder)
    assert dataset.creative_embedding.shape == (0, 0)


@pytest.mark.parametrize("values", [[0.5, None], ["a", "b"], [None, None], [{"a": 1}, None]])
def test_propensities_may_be_unknown(ad_log, tmp_path, values):
    del ad_log.sessions["propensity"]
    folder = ad_log.write(tmp_path / "log")
    for path in (folder / "sessions").iterdir():
        table = pq.read_table(path)
        values = [values[row % 2] for row in range(len(table))]
        pq.write_table(table.append_column("propensity", pa.array(values)), path)
    assert validate(folder).num_rows == 40


def test_propensities_per_slot(ad_log, tmp_path):
    ad_log.types["propensity"] = pa.list_(pa.float64())
    ad_log.sessions["propensity"] = [[0.5] * len(row) for row in ad_log.sessions["shown_poi"]]
    ad_log.sessions["propensity"][3] = None
    assert validate(ad_log.write(tmp_path / "good")).num_rows == 40
    ad_log.sessions["propensity"][4][0] = 1.5
    with pytest.raises(DataError, match=r"'propensity', row 4: .* in \(0, 1\], found 1.5"):
        validate(ad_log.write(tmp_path / "bad"))


def test_sequences_with_dates(make_sequences, tmp_path):
    raw = make_sequences()
    day = datetime.datetime(2025, 1, 1)
    raw.types["timestamps"] = pa.list_(pa.timestamp("ms"))
    raw.sequences["timestamps"] = [
        [day + datetime.timedelta(hours=hour) for hour in hours]
        for hours in raw.sequences["timestamps"]
    ]
    assert validate(raw.write(tmp_path / "good")).num_rows == 8
    raw.sequences["timestamps"][4][2] = day
    with pytest.raises(DataError, match=r"column 'timestamps', row 4: .* in time order"):
        validate(raw.write(tmp_path / "bad"))


def test_an_id_beyond_int64_is_named(log):
    _, other = log
    large = with_column("session_id", lambda column: pa.array([10**30] * 15, pa.decimal128(38, 0)))
    rewrite(other / "sessions" / "part-1.parquet", large)
    with pytest.raises(DataError, match=r"part-1.parquet, column 'session_id', row 0: session ids"):
        validate(other)


def test_a_column_that_is_twice_or_a_partition_alone_is_named(log):
    _, other = log
    path = other / "sessions" / "part-1.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("user_id", table["user_id"]), path)
    with pytest.raises(DataError, match=r"column 'user_id': there may be only one column of this"):
        validate(other)
    path.unlink()
    (other / "sessions" / "user_id=3").mkdir()
    partitioned = other / "sessions" / "user_id=3" / "part-1.parquet"
    pq.write_table(table.drop_columns("user_id"), partitioned)
    with pytest.raises(DataError, match=r"'user_id': the column is missing .* name alone has it"):
        validate(other)
