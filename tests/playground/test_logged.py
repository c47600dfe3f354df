"""Logged requests with lists of their own, and the names of their items."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny_runs import write_ad_log

from ega_jax.data.books import Books
from ega_jax.playground.logged import LoggedRequests, Names

BOOKS = Books(
    poi=np.int32([4, 2, 7]),
    bid=np.float32([1.0, 3.0, 0.5]),
    book_start=np.array([0, 2, 3]),
    book_id=np.array([10, 11]),
)


def batch(**fields):
    """Two sessions and a blank row."""
    shared = {
        "history_poi": np.int32([[-1, 1], [3, 5], [-1, -1]]),
        "history_creative": np.int32([[-1, 2], [6, 8], [-1, -1]]),
        "session": np.int32([30, 31, 0]),
        "click_poi": np.zeros((3, 2), bool),
    }
    return shared | fields


def of_books():
    organic = np.int32([[9, 4], [8, -1], [-1, -1]])
    return LoggedRequests.of([batch(book=np.int32([0, 1, -1]), organic=organic)], BOOKS)


def own_lists():
    fields = {
        "item": np.int32([[4, 2, 9], [7, 8, -1], [-1, -1, -1]]),
        "is_ad": np.array([[True, True, False], [True, False, False], [False] * 3]),
        "bid": np.float32([[1.0, 3.0, 0.0], [0.5, 0.0, 0.0], [0.0] * 3]),
    }
    return LoggedRequests.of([batch(**fields)], None)


def test_the_ads_of_a_book_are_listed_before_the_organic_items():
    logged = of_books()
    assert len(logged) == 2, "a blank row is no request"
    assert logged.session.tolist() == [30, 31]
    assert logged.batch.item.tolist() == [[4, 2, 9, 4], [7, -1, 8, -1]]
    assert logged.batch.is_ad.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert logged.batch.bid.tolist() == [[1.0, 3.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]]
    assert logged.batch.context is None


def test_lists_of_a_request_stay_as_they_are():
    logged = own_lists()
    assert logged.batch.item.tolist() == [[4, 2, 9], [7, 8, -1]]
    assert logged.batch.history_poi.tolist() == [[-1, 1], [3, 5]]


def test_one_ad_of_one_request_bids_another_amount():
    logged = own_lists()
    request = logged.request(0, ad=1, bid=9.0)
    assert request.item.tolist() == [[4, 2, 9]]
    assert request.bid.tolist() == [[1.0, 9.0, 0.0]]
    assert logged.request(0).bid.tolist() == [[1.0, 3.0, 0.0]], "the log stays as it is"


def test_ads_come_in_the_order_of_their_bids():
    assert own_lists().ads(0) == [1, 0]
    assert of_books().ads(1) == [0]


def test_the_highest_bid_is_above_all_and_twice_the_own():
    logged = own_lists()
    assert logged.highest_bid(0, 0) == 1.25 * 3.0
    assert logged.highest_bid(0, 1) == 2 * 3.0


def test_items_are_called_by_title_and_place_of_their_image(tmp_path):
    folder = write_ad_log(tmp_path / "log")
    pois = pq.read_table(folder / "pois.parquet")
    titles = pa.array(["Noodles", None, *["x"] * 14])
    tags = pa.array([["Food", "Asian"], [], *[["y"]] * 14], pa.list_(pa.string()))
    named = pois.append_column("title", titles).append_column("category", tags)
    pq.write_table(named, folder / "pois.parquet")
    names = Names.load(folder, np.int32([[0, 1, 32], [2, -1, -1]]))
    assert (names.title(0), names.categories[0]) == ("Noodles", "Food > Asian")
    assert (names.title(1), names.categories[1]) == ("POI 1", "")
    assert names.image(0, 32) == "image 3 of 3"
    assert names.image(1, 2) == "image 1 of 1"
    assert names.image(1, -1) == "", "an item without a creative"
