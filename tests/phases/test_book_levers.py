"""What a log's books give the search; levers that they do not serve are refused before training."""

import types
from pathlib import Path

import numpy as np
import pytest
from tiny_models import levers

from ega_jax.auction.reserves import monopoly_prices
from ega_jax.data.books import Books
from ega_jax.errors import UserError
from ega_jax.generation.ad_book import smoothed
from ega_jax.phases.auction import AuctionTraining, SystemKind
from ega_jax.phases.ega import ega_with
from experiments.configs import market

CODES = np.array([[0, 1], [1, 0], [0, 0], [1, 1]])
BOOKS = Books(  # Two books, of which the second was used first.
    poi=np.array([0, 1, 2, 1, 3], np.int32),
    bid=np.array([2.0, 1.0, 4.0, 9.0, 3.0], np.float32),
    book_start=np.array([0, 3, 5]),
    book_id=np.array([7, 5]),
)
PAST = [6.0, 9.0, 6.0, 0.0, 0.0]  # POI 1 has bid 9 before; the others get the mean of all bids.


def run_of(books=BOOKS, **settings):
    """A training whose models may not be asked for."""
    log = types.SimpleNamespace(
        books=books,
        first_uses=lambda: np.array([10, 3])[: len(books.book_id)],
        summary=types.SimpleNamespace(num_slots=2, max_ads=0),
    )
    pretraining = types.SimpleNamespace(
        ad_log=log,
        settings=market.settings("tiny").changed(settings),
        tokens={"poi": types.SimpleNamespace(codes=CODES)},
        generator_config=types.SimpleNamespace(num_codes=2),
        workdir=Path("none"),
    )
    return AuctionTraining(
        pretraining, Path("none/ega"), SystemKind(lambda _: pytest.fail("trained"))
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_the_search_sees_smoothed_bids(smoothing):
    run = run_of(**{"allocation.bid_smoothing": smoothing})
    np.testing.assert_array_equal(run.past_bids, PAST)
    book = run.book(levers())
    expected = smoothed(BOOKS.bid, np.array(PAST, np.float32), smoothing)
    np.testing.assert_allclose(book.search_bid[:5], expected, rtol=1e-6)
    assert book.smoothing == smoothing


def test_a_truthful_search_sees_past_bids_alone_whatever_the_smoothing():
    run = run_of(**{"allocation.bid_smoothing": 0.5, "allocation.reserve_rank": 0})
    free = levers(bid_free=True)
    book = run.truthful_book(free)
    np.testing.assert_array_equal(book.search_bid[:5], PAST)
    assert book.smoothing == 1
    np.testing.assert_array_equal(run.book(free).search_bid[:5], 0.0)


def test_reserves_are_of_past_bids():
    run = run_of(**{"auction.reserves": "monopoly"})
    category = np.array([0, 1, 0, 3, 3])
    np.testing.assert_array_equal(run.reserves, monopoly_prices(np.array(PAST), category))


def test_without_past_bids_there_is_no_smoothing():
    alone = Books(BOOKS.poi[:3], BOOKS.bid[:3], np.array([0, 3]), np.array([7]))
    for books in (None, alone):
        with pytest.raises(UserError, match=r"bid_smoothing: the log's books have no past bids"):
            run_of(books, **{"allocation.bid_smoothing": 0.5}).book(levers())
    assert run_of(None).book(levers()) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"allocation.bid_free": True},
        {"allocation.token_bid": "mean"},
        {"allocation.bid_smoothing": 0.5},
    ],
)
def test_a_reserve_needs_an_order_of_bids(settings):
    with pytest.raises(UserError, match=r"reserve is 5\.0: a book with search_bid or mean token"):
        ega_with(run_of(**settings, **{"allocation.reserve": 5.0}), {})
