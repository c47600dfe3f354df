"""Logs with ad books: what is in memory, and batches that are those of the same log without."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data import ad_logs
from ega_jax.data.books import Books
from ega_jax.data.description import describe
from ega_jax.data.pipeline import eval_batches, open_dataset, train_batches
from ega_jax.data.schema import validate

CANDIDATES = ("item", "is_ad", "bid")


def batches(dataset, split="pretrain", batch_size=7):
    return list(eval_batches(dataset, split, batch_size=batch_size, history_length=4))


def joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture
def folder(book_log, tmp_path):
    return book_log.write(tmp_path / "log")


def test_books_are_in_memory_as_listed(book_log, folder):
    books = open_dataset(folder).books
    assert books.book_id.tolist() == [7, 3, 2**40]
    assert books.book_start.tolist() == [0, 5, 9, 15]
    assert books.poi.tolist() == list(itertools.chain(*book_log.books["ad_poi"]))
    assert books.bid.tolist() == list(itertools.chain(*book_log.books["ad_bid"]))
    kinds = books.poi.dtype, books.bid.dtype, books.book_start.dtype, books.book_id.dtype
    assert kinds == (np.int32, np.float32, np.int64, np.int64)


def test_a_log_of_own_ads_has_no_books(ad_log, tmp_path):
    dataset = open_dataset(ad_log.write(tmp_path / "log"))
    assert dataset.books is None
    assert set(CANDIDATES) <= batches(dataset)[0].keys()


def test_batches_name_books_and_organic_items(book_log, folder):
    dataset = open_dataset(folder)
    found, width = joined(batches(dataset)), dataset.summary.num_candidates
    assert not found.keys() & set(CANDIDATES)
    assert found["book"].tolist() == [row % 3 for row in range(28)]
    organic = book_log.sessions["organic_poi"][:28]
    expected = [items + [-1] * (width - len(items)) for items in organic]
    assert found["organic"].tolist() == expected
    assert found["organic"].dtype == found["book"].dtype == np.int32


@pytest.mark.parametrize("split", ad_logs.SPLITS)
def test_the_rest_of_a_batch_is_that_of_the_log_without_books(book_log, folder, tmp_path, split):
    dataset = open_dataset(folder)
    own = open_dataset(book_log.with_own_ads().write(tmp_path / "own"))
    pairs = zip(batches(dataset, split), batches(own, split), strict=True)
    for batch, other in pairs:
        assert batch.keys() - {"organic", "book"} == other.keys() - set(CANDIDATES)
        for name in batch.keys() & other.keys():
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name, strict=True)
        for row, book in enumerate(batch["book"]):
            is_ad = other["is_ad"][row]
            start, end = dataset.books.book_start[book : book + 2] if book >= 0 else (0, 0)
            assert dataset.books.poi[start:end].tolist() == other["item"][row][is_ad].tolist()
            assert dataset.books.bid[start:end].tolist() == other["bid"][row][is_ad].tolist()


def test_blank_rows_name_no_book(folder):
    (batch,) = batches(open_dataset(folder), "test", batch_size=8)
    assert (batch["book"][6:] == -1).all()
    assert (batch["organic"][6:] == -1).all()


def test_training_batches_have_every_row_once(folder):
    stream = iter(train_batches(open_dataset(folder), "pretrain", batch_size=7, history_length=4))
    found = joined([next(stream) for _ in range(4)])
    assert sorted(found["session"].tolist()) == list(range(100, 128))
    assert (found["book"] == (found["session"] - 100) % 3).all()


def test_books_may_be_parts_in_nested_folders_in_the_order_of_their_names(book_log, tmp_path):
    folder = book_log.write(tmp_path / "log", books_per_file=1)
    books = folder / "books"
    for name, place in (("0", "dt=2/c"), ("1", "dt=1/part-b"), ("2", "dt=1/part-a")):
        (books / place).parent.mkdir(exist_ok=True)
        (books / f"part-{name}.parquet").rename(books / f"{place}.parquet")
    (books / "_SUCCESS").touch()
    dataset = open_dataset(folder)
    assert dataset.books.book_id.tolist() == [2**40, 3, 7]
    assert dataset.books.book_start.tolist() == [0, 6, 10, 15]
    assert joined(batches(dataset))["book"].tolist() == [2 - row % 3 for row in range(28)]


def test_types_may_differ_by_file(book_log, folder):
    first, second = (folder / "books" / f"part-{number}.parquet" for number in (0, 1))
    kinds = {"book_id": pa.int32(), "ad_poi": pa.large_list(pa.int64()),
             "ad_bid": pa.list_(pa.float64())}  # fmt: skip
    pq.write_table(pq.read_table(first).cast(pa.schema(kinds.items())), first)
    lists = pq.read_table(second)
    views = pa.array(lists["ad_poi"].to_pylist(), pa.list_view(pa.int32()))
    pq.write_table(lists.set_column(1, "ad_poi", views), second)
    books = open_dataset(folder).books
    assert books.poi.tolist() == list(itertools.chain(*book_log.books["ad_poi"]))
    assert (books.poi.dtype, books.bid.dtype) == (np.int32, np.float32)


def test_a_file_of_books_without_ads_may_lack_the_type_of_a_list(folder):
    empty = {"book_id": [1], "ad_poi": pa.nulls(1), "ad_bid": pa.array([[]], pa.list_(pa.null()))}
    pq.write_table(pa.table(empty), folder / "books" / "part-9.parquet")
    books = open_dataset(folder).books
    assert books.book_id.tolist() == [7, 3, 2**40, 1]
    assert books.book_start.tolist() == [0, 5, 9, 15, 15]


def test_sessions_are_streamed_and_books_are_not_copied(folder):
    """A pool of sessions holds the rows of its row groups, and no list of ads."""
    dataset = open_dataset(folder)
    sessions = ad_logs.LoggedSessions(dataset.split("pretrain"), 4, 3, 5, 0.1, dataset.books)
    assert sessions.group_sizes == (10, 10, 5, 3)
    pool = sessions.load((1, 3))
    assert pool.session.tolist() == [*range(110, 120), *range(125, 128)]
    assert not pool.lists.keys() & {"ad_poi", "ad_bid"}


def test_figures_of_a_log_of_books(book_log, folder):
    found = describe(folder, validate(folder), (0.7, 0.1, 0.1))
    bids = list(itertools.chain(*book_log.books["ad_bid"]))
    organic = [*map(len, book_log.sessions["organic_poi"])]
    assert found.facts["books"] == 3
    assert found.facts["ads per book"] == {"mean": 5.0, "median": 5, "90 %": 6, "most": 6}
    assert found.facts["requests per book"]["mean"] == pytest.approx(40 / 3)
    assert found.facts["requests per book"]["most"] == 14
    assert found.facts["organic items per request"]["mean"] == np.mean(organic)
    assert found.facts["bid"]["50 %"] == pytest.approx(np.median(bids), rel=1e-6)
    assert "candidates per request" not in found.facts
    assert not any("book" in warning for warning in found.warnings)


def test_books_that_look_wrong_are_warned_of(book_log, tmp_path):
    for name in ("ad_poi", "ad_bid"):
        book_log.books[name].append([])
    book_log.books["book_id"].append(0)
    book_log.books["ad_bid"] = [[0.0] * len(ads) for ads in book_log.books["ad_bid"]]
    folder = book_log.write(tmp_path / "log")
    warnings = describe(folder, validate(folder), (0.7, 0.1, 0.1)).warnings
    for words in (
        "1 of 4 books are named by no session",
        "1 of 4 books have no ad",
        "every bid is 0",
    ):
        assert words in warnings


def test_the_first_use_of_a_book_is_its_first_session(folder):
    dataset = open_dataset(folder)
    named = np.concatenate([joined(batches(dataset, split))["book"] for split in ad_logs.SPLITS])
    named = named[named >= 0]
    assert dataset.first_uses().tolist() == [named.tolist().index(book) for book in range(3)]


def test_competing_bids_by_a_loop():
    rng = np.random.default_rng(1)
    sizes = np.append(0, rng.integers(0, 9, 12))
    start, past = np.append(0, np.cumsum(sizes)), rng.choice([0.5, 1.0, 2.0, 3.0], sizes.sum())
    books = Books(np.arange(past.size), past, start, np.arange(13))
    for rank in (1, 3, 8):
        expected = np.zeros(past.size)
        for book in range(13):
            for ad in range(start[book], start[book + 1]):
                others = sorted(past[n] for n in range(start[book], start[book + 1]) if n != ad)
                expected[ad] = others[-rank] if len(others) >= rank else 0.0
        np.testing.assert_array_equal(books.competing_bids(past, rank), expected)


def test_past_bids_by_a_loop():
    """Books of many sizes, used in another order than they are listed; POIs come and go."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 9, 12)
    poi = np.concatenate([rng.permutation(15)[:size] for size in sizes]).astype(np.int32)
    bid = rng.lognormal(size=len(poi)).astype(np.float32)
    start, first_use = np.append(0, np.cumsum(sizes)), rng.permutation(40)[:12]
    found = Books(poi, bid, start, np.arange(12)).past_bids(first_use)
    own, firsts = 0, 0
    for book in range(12):
        rows = lambda b: range(start[b], start[b + 1])
        earlier = [n for b in np.flatnonzero(first_use < first_use[book]) for n in rows(b)]
        for ad in rows(book):
            same = [bid[n] for n in earlier if poi[n] == poi[ad]]
            own, firsts = own + bool(same), firsts + (not earlier)
            expected = np.mean(same or [bid[n] for n in earlier] or [0.0])
            assert found[ad] == pytest.approx(expected, rel=1e-5)
    assert own > 10
    assert firsts > 0
    changed = bid.copy()
    last = np.argmax(first_use)
    changed[start[last] : start[last + 1]] *= 1e20  # Nor do they touch it by rounding.
    again = Books(poi, changed, start, np.arange(12)).past_bids(first_use)
    np.testing.assert_array_equal(found, again, "a book's own bids are not its past")
