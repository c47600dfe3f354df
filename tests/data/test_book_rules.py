"""Each rule for ad books, and for sessions that name them, with its message."""

import math
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data import checks
from ega_jax.data.book_rules import BookIndex, book_numbers, check_books, open_books
from ega_jax.data.schema import validate
from ega_jax.data.tables import DataError

FLOATS = pa.list_(pa.float32())


def book(column, row, value):
    def spoil(log):
        log.books[column][row] = value

    return spoil


def session(column, row, value):
    def spoil(log):
        log.sessions[column][row] = value

    return spoil


def of_type(column, kind, table, values):
    def spoil(log):
        log.types[column] = kind
        getattr(log, table)[column] = values

    return spoil


def add_book(book_id, ads=()):
    def spoil(log):
        log.books["book_id"].append(book_id)
        log.books["ad_poi"].append(list(ads))
        log.books["ad_bid"].append([1.0] * len(ads))

    return spoil


def no_ads(log):
    for name in ("ad_poi", "ad_bid"):
        log.books[name] = [[], [], []]
    for name in ("shown_poi", "shown_creative", "shown_is_ad", "click_poi", "click_image"):
        log.sessions[name] = [row[1:] for row in log.sessions[name]]
    log.sessions["convert"] = [row[1:] for row in log.sessions["convert"]]


def show_an_ad_of_another_book(log):
    """Session 31, row 6 of the second file, names the second book."""
    first, second = (set(ads) for ads in log.books["ad_poi"][:2])
    others = first - second - set(log.sessions["shown_poi"][31])
    log.sessions["shown_poi"][31][0] = min(others)
    log.sessions["shown_creative"][31][0] = 2 * min(others)


# Files of books hold two: book 2**40 is row 0 of the second.
FAULTS = {
    "same id in a file": (
        book("book_id", 1, 7),
        "books/part-0.parquet, column 'book_id', row 1: "
        "two books may not have the same id, found 7",
    ),
    "same id in another file": (
        add_book(7),
        "books/part-1.parquet, column 'book_id', row 1: "
        "two books may not have the same id, found 7",
    ),
    "negative id": (
        book("book_id", 2, -1),
        "books/part-1.parquet, column 'book_id', row 0: book ids must be at least 0, found -1",
    ),
    "null id": (
        book("book_id", 1, None),
        "books/part-0.parquet, column 'book_id', row 1: nulls are not allowed",
    ),
    "id beyond int64": (
        of_type("book_id", pa.decimal128(38, 0), "books", [7, 3, 10**30]),
        "books/part-1.parquet, column 'book_id', row 0: book ids must be at least 0",
    ),
    "no such POI": (
        book("ad_poi", 2, [0, 1, 2, 3, 4, 12]),
        "books/part-1.parquet, column 'ad_poi', row 0: POI ids must be in 0..11, found 12",
    ),
    "POI twice": (
        book("ad_poi", 1, [5, 2, 8, 2]),
        "books/part-0.parquet, column 'ad_poi', row 1: a candidate must come once, found 2",
    ),
    "negative bid": (
        book("ad_bid", 1, [0.0, 1.0, -0.5, -1.0]),
        "books/part-0.parquet, column 'ad_bid', row 1: bids must be from 0 to 1e+30, found -0.5",
    ),
    "bid that is no number": (
        book("ad_bid", 2, [0.0, 1.0, 2.0, 3.0, 4.0, math.nan]),
        "books/part-1.parquet, column 'ad_bid', row 0: bids must be from 0 to 1e+30, found nan",
    ),
    "too large a bid": (
        book("ad_bid", 0, [0.0, 1.0, 2.0, 3.0, 2.0**100]),
        "books/part-0.parquet, column 'ad_bid', row 0: bids must be from 0 to 1e+30, found 1.2",
    ),
    "bids of another length": (
        book("ad_bid", 1, [0.0, 1.0, 2.0]),
        "books/part-0.parquet, column 'ad_bid', row 1: "
        "a list must be as long as that of 'ad_poi', found 3",
    ),
    "null in place of a list": (
        book("ad_poi", 1, None),
        "books/part-0.parquet, column 'ad_poi', row 1: nulls are not allowed",
    ),
    "null in a list": (
        book("ad_bid", 1, [1.0, None, 1.0, 1.0]),
        "books/part-0.parquet, column 'ad_bid', row 1: a list may not hold nulls",
    ),
    "ids of another type": (
        of_type("ad_poi", FLOATS, "books", [[1.0], [2.0], [3.0]]),
        "books/part-0.parquet, column 'ad_poi': the column must be a list of integers, found list",
    ),
    "missing column": (
        lambda log: log.books.pop("ad_bid"),
        "books/part-0.parquet, column 'ad_bid': the column is missing (a list of floats)",
    ),
    "no rows": (
        lambda log: log.books.update(book_id=[], ad_poi=[], ad_bid=[]),
        "books: the folder holds no Parquet file",
    ),
    "nothing for sale": (no_ads, "books, column 'ad_poi': no book has an ad"),
    "no such book": (
        session("book_id", 30, 8),
        "sessions/part-1.parquet, column 'book_id', row 5: no book has this id, found 8",
    ),
    "no book": (
        session("book_id", 30, None),
        "sessions/part-1.parquet, column 'book_id', row 5: nulls are not allowed",
    ),
    "sessions without a book": (
        lambda log: log.sessions.pop("book_id"),
        "sessions/part-0.parquet, column 'book_id': the column is missing (an integer)",
    ),
    "ad of another book": (
        show_an_ad_of_another_book,
        "sessions/part-1.parquet, column 'shown_poi', row 6: "
        "a shown ad must be in the book that its 'book_id' names, found",
    ),
    "organic item that was not offered": (
        session("organic_poi", 3, []),
        "sessions/part-0.parquet, column 'shown_poi', row 3: "
        "a shown item must be in its 'organic_poi'",
    ),
}


@pytest.mark.parametrize("rows_at_a_time", [16_384, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_book_log_is_named(book_log, tmp_path, monkeypatch, fault, rows_at_a_time):
    monkeypatch.setattr(checks, "_ROWS_AT_A_TIME", rows_at_a_time)
    spoil, message = FAULTS[fault]
    spoil(book_log)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/log/{message}")):
        validate(book_log.write(tmp_path / "log"))


def test_books_that_are_missing_or_empty_are_named(book_log, tmp_path):
    folder = book_log.write(tmp_path / "log")
    shutil.rmtree(folder / "books")
    with pytest.raises(DataError, match="books: the folder does not exist, but sessions name a"):
        validate(folder)
    (folder / "books").mkdir()
    with pytest.raises(DataError, match="books: the folder holds no Parquet file"):
        validate(folder)
    no_rows = {"book_id": [], "ad_poi": [], "ad_bid": []}
    pq.write_table(pa.table(no_rows), folder / "books" / "part-0.parquet")
    with pytest.raises(DataError, match="books: there are no books"):
        validate(folder)
    (folder / "books" / "part-1.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"books/part-1.parquet: not a readable Parquet file"):
        validate(folder)


def change_sessions(folder, part, change):
    path = folder / "sessions" / f"part-{part}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def cast_book_id(kind):
    def change(table):
        place = table.column_names.index("book_id")
        return table.set_column(place, "book_id", table["book_id"].cast(kind))

    return change


def test_a_session_may_not_name_a_book_by_text(book_log, tmp_path):
    folder = book_log.write(tmp_path / "log")
    change_sessions(folder, 1, cast_book_id(pa.string()))
    message = "part-1.parquet, column 'book_id': the column must be an integer, found string"
    with pytest.raises(DataError, match=message):
        validate(folder)


def lists_of(value, kind):
    return lambda table: pa.array([value] * len(table), kind)


MIXED = "all sessions of a log hold their own ads or all name books, not both"


@pytest.mark.parametrize(("column", "kind"), [("ad_poi", pa.int32()), ("ad_bid", pa.float32())])
def test_a_log_of_books_may_not_have_own_ads_too(book_log, tmp_path, column, kind):
    folder = book_log.write(tmp_path / "log")
    values = lists_of([1], pa.list_(kind))
    change_sessions(folder, 1, lambda table: table.append_column(column, values(table)))
    message = f"sessions/part-1.parquet, column '{column}': {MIXED}"
    with pytest.raises(DataError, match=message):
        validate(folder)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_a_log_of_own_ads_may_not_name_books_too(ad_log, tmp_path, part, kind):
    folder = ad_log.write(tmp_path / "log")
    ids = lambda table: pa.array([1] * len(table)).cast(kind)
    change_sessions(folder, part, lambda table: table.append_column("book_id", ids(table)))
    message = f"sessions/part-{part}.parquet, column 'book_id': {MIXED}"
    with pytest.raises(DataError, match=message):
        validate(folder)


def test_a_log_of_own_ads_may_not_have_books_beside_it(ad_log, book_log, tmp_path):
    folder = ad_log.write(tmp_path / "log")
    shutil.copytree(book_log.write(tmp_path / "other") / "books", folder / "books")
    with pytest.raises(DataError, match=r"part-0.parquet, column 'book_id': the column is missing"):
        validate(folder)


def test_files_of_own_ads_beside_files_that_name_books_are_refused(ad_log, book_log, tmp_path):
    folder, other = book_log.write(tmp_path / "log"), ad_log.write(tmp_path / "other")
    shutil.copy(other / "sessions" / "part-1.parquet", folder / "sessions" / "part-1.parquet")
    with pytest.raises(DataError, match=r"part-1.parquet, column 'book_id': the column is missing"):
        validate(folder)
    shutil.rmtree(folder / "books")
    shutil.copy(other / "sessions" / "part-0.parquet", folder / "sessions" / "part-0.parquet")
    shutil.copy(
        book_log.write(tmp_path / "again") / "sessions" / "part-1.parquet", folder / "sessions"
    )
    with pytest.raises(DataError, match=r"part-1.parquet, column 'ad_poi': the column is missing"):
        validate(folder)


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.null()])
def test_columns_of_the_other_kind_may_be_there_without_a_value(ad_log, book_log, tmp_path, kind):
    """Engines that join tables of both kinds write such columns."""
    folder, nulls = book_log.write(tmp_path / "books"), lists_of(None, kind)
    for part in (0, 1):
        change_sessions(folder, part, lambda table: table.append_column("ad_poi", nulls(table)))
    assert validate(folder).num_books == 3
    folder = ad_log.write(tmp_path / "own")
    ids = lists_of(None, pa.int64())
    change_sessions(folder, 0, lambda table: table.append_column("book_id", ids(table)))
    assert validate(folder).num_books == 0


def test_summary_of_a_log_of_books(book_log, tmp_path):
    summary = validate(book_log.write(tmp_path / "log"))
    most_organic = max(map(len, book_log.sessions["organic_poi"]))
    assert (summary.format, summary.num_rows, summary.num_books) == ("ad_log", 40, 3)
    assert (summary.most_ads, summary.most_organic) == (6, most_organic)
    assert summary.num_candidates == most_organic
    assert "       num_books: 3\n" in str(summary)


def test_books_without_ads_and_books_that_nobody_names_are_valid(book_log, tmp_path):
    add_book(0)(book_log)
    add_book(1, ads=range(12))(book_log)
    summary = validate(book_log.write(tmp_path / "log"))
    assert (summary.num_books, summary.most_ads) == (5, 12)


def test_nothing_for_sale_is_valid_where_nothing_is_trained(book_log, tmp_path):
    no_ads(book_log)
    summary = validate(book_log.write(tmp_path / "log"), for_training=False)
    assert (summary.num_books, summary.most_ads) == (3, 0)


def test_an_organic_item_may_be_an_ad_of_the_book(book_log, tmp_path):
    ads = book_log.books["ad_poi"][0]
    session("organic_poi", 0, [*book_log.sessions["shown_poi"][0][1:], ads[-1]])(book_log)
    assert validate(book_log.write(tmp_path / "log")).num_rows == 40


def test_long_books_are_read_a_few_at_a_time(book_log, tmp_path, monkeypatch):
    """Books have 5, 4 and 6 ads in one file; 10 values at a time are two mean rows."""
    monkeypatch.setattr(checks, "_VALUES_AT_A_TIME", 10)
    folder = book_log.write(tmp_path / "log", books_per_file=3)
    read = [part.table.num_rows for part in checks.parts(open_books(folder), ["ad_poi", "ad_bid"])]
    assert read == [2, 1]
    monkeypatch.setattr(checks, "_VALUES_AT_A_TIME", 1)
    assert [len(part.rows) for part in checks.parts(open_books(folder), ["ad_poi"])] == [1, 1, 1]
    assert validate(folder).num_books == 3


def test_an_index_of_books_finds_what_a_loop_finds(book_log, tmp_path):
    index = check_books(open_books(book_log.write(tmp_path / "log")), 12)
    assert index.book_id.tolist() == book_log.books["book_id"]
    assert index.num_ads.tolist() == [5, 4, 6]
    book, poi = (grid.ravel() for grid in np.mgrid[:3, :12])
    expected = [p in book_log.books["ad_poi"][b] for b, p in zip(book, poi, strict=True)]
    assert index.hold(book.astype(np.int32), poi).tolist() == expected


def test_keys_of_many_books_of_a_large_catalogue_do_not_overflow():
    book, num_pois = np.array([2**20, 2**20], np.int32), 2**24
    keys = np.array([2**20 * num_pois + 5], np.int64)
    index = BookIndex(np.arange(2**20 + 1), np.zeros(0, np.int64), num_pois, keys)
    assert index.hold(book, np.array([5, 6])).tolist() == [True, False]


def test_books_are_numbered_by_place():
    ids = np.array([7, 2**62, 0])
    numbers = book_numbers(ids, np.array([0, 7, 8, 2**62, -1, 2**62 + 1]))
    assert numbers.tolist() == [2, 0, -1, 1, -1, -1]
    assert numbers.dtype == np.int32
