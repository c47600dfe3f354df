"""Requests to books of one forest against the same ads and organic items as lists of their own."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from book_requests import allocate, requests_to, shapes_computed
from tiny_mechanism import PRICING, tiny_mechanism
from tiny_models import C, K, P, W, levers, one, random_requests, serve, tiny_ega, with_beams

from ega_jax.auction.contributions import contributions
from ega_jax.auction.counterfactuals import counterfactuals
from ega_jax.auction.outcomes import tabulate_request
from ega_jax.auction.pricing import prices
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.generation.reports import ABSENT, Report
from ega_jax.types import BookRequest

ROWS = 24
REQUESTS = random_requests(2, ROWS)
CHOICES = [("max", "prefix"), ("mean", "prefix"), ("max", "layer"), ("mean", "layer")]
LIMITS = {"reserve": 0.8, "max_ads": 2, "min_gap": 1}
ORDER = np.random.default_rng(0).permutation(ROWS)  # Book v lists the ads of request `ORDER[v]`.
SIZES = REQUESTS.is_ad.sum(1)[ORDER]
START = np.append(0, np.cumsum(SIZES))
BIDS = np.concatenate([REQUESTS.bid[row][REQUESTS.is_ad[row]] for row in ORDER])
POIS = np.concatenate([REQUESTS.item[row][REQUESTS.is_ad[row]] for row in ORDER])
ALL_BUT_IDS = ("item", "creative", "is_ad", "bid", "quality", "log_z")


def ledger(token_bid="max", scope="prefix", **arguments):
    """The ads of all requests, as a forest of one book each; some have no ads."""
    assert {0, 1} < set(SIZES.tolist())
    return BookLedger(
        POIS, BIDS, START, tiny_ega().items.catalogue.poi_codes, W,
        num_slots=K, token_bid=token_bid, scope=scope, **arguments,
    )  # fmt: skip


def system_of(token_bid="max", scope="prefix", book=None):
    """A system with a narrow search, and with a forest."""
    few = with_beams(tiny_ega(), 4)
    config = dataclasses.replace(few.config, token_bid=token_bid, scope=scope)
    return dataclasses.replace(few, config=config, book=book)


def organic_of(row):
    there = (REQUESTS.item[row] >= 0) & ~REQUESTS.is_ad[row]
    return REQUESTS.item[row][there]


def to_books():
    """The requests of `REQUESTS`, whose ads are in books."""
    organic = np.full(REQUESTS.item.shape, -1, np.int32)
    for row in range(ROWS):
        organic[row, : len(organic_of(row))] = organic_of(row)
    book = np.argsort(ORDER).astype(np.int32)
    return BookRequest(REQUESTS.history_poi, REQUESTS.history_creative, organic, book)


def in_book(system, row, candidate):
    """The candidate of a request's list as the request to a book numbers it."""
    if candidate < 0:
        return -1
    is_ad = REQUESTS.is_ad[row]
    if is_ad[candidate]:
        return START[np.argmax(row == ORDER)] + is_ad[:candidate].sum()
    return system.book.num_ads + (~is_ad[:candidate]).sum()


def for_each(system, networks, requests, levers):
    """Slates, menus, counterfactuals, prices and tokens of a batch of requests."""

    def each(request):
        prepared = system.prepare(request, levers)
        shown, menu = system.allocate(prepared)
        known, _, _ = counterfactuals(system, PRICING.probed, prepared, shown.ads, menu)
        charged = prices(networks, PRICING, levers, shown, menu, known)
        return shown, menu, known, charged, system.tokens(prepared, shown)

    return jax.vmap(each)(requests)


COMPILED = jax.jit(for_each)


def found(system, requests, levers):
    """What requests lead to, on the host."""
    return jax.device_get(COMPILED(system, tiny_mechanism().networks, requests, levers))


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5)


def assert_same_slates(lists, books):
    """All but the numbers of candidates."""
    for name in (*ALL_BUT_IDS, "prediction"):
        jax.tree.map(close, getattr(lists, name), getattr(books, name))


def assert_same_menus(lists, books):
    """All but the numbers of candidates and what stands in slates that were not found."""
    live = np.asarray(lists.where)
    np.testing.assert_array_equal(live, books.where)
    for name in (*ALL_BUT_IDS, "pctr", "value", "states"):
        close(np.asarray(getattr(lists, name))[live], np.asarray(getattr(books, name))[live])
    np.testing.assert_array_equal(lists.rivals.ad >= 0, books.rivals.ad >= 0)
    close(lists.rivals.score, books.rivals.score)


def assert_same(lists, books):
    """What `found` gives for lists and for books."""
    (shown, menu, known, *rest), (in_books, its_menu, its_known, *its_rest) = lists, books
    assert_same_slates(shown, in_books)
    assert_same_menus(menu, its_menu)
    ads = np.asarray(shown.is_ad)
    jax.tree.map(lambda x, y: close(x[ads], y[ads]), known, its_known)
    jax.tree.map(close, rest, its_rest)


@pytest.mark.parametrize(("token_bid", "scope"), CHOICES)
def test_a_book_leads_to_the_slates_of_a_list(token_bid, scope):
    for changes in ({}, LIMITS):
        eligible = changes.get("reserve", 0.0) <= BIDS
        system = system_of(token_bid, scope, ledger(token_bid, scope, eligible=eligible).book)
        _, shown, menu = jax.device_get(serve(system, REQUESTS, levers(**changes)))
        _, in_books, its_menu = jax.device_get(serve(system, to_books(), levers(**changes)))
        assert_same_slates(shown, in_books)
        assert_same_menus(menu, its_menu)
        for row, slot in np.ndindex(ROWS, K):
            expected = in_book(system, row, shown.candidate[row, slot])
            assert in_books.candidate[row, slot] == expected
        assert shown.is_ad.any()
        assert (~shown.is_ad & (shown.item >= 0)).any()


@pytest.mark.parametrize("changes", [{}, LIMITS])
def test_a_book_leads_to_the_prices_and_counterfactuals_of_a_list(changes):
    system = system_of(book=ledger().book)
    lists = found(system, REQUESTS, levers(**changes))
    assert_same(lists, found(system, to_books(), levers(**changes)))
    assert (lists[3]["gsp"] > 0).any()


def test_a_book_of_given_search_bids_leads_to_what_a_bid_free_list_does():
    system = system_of(book=ledger(search_bid=np.zeros(BIDS.size)).book)
    settings = levers(bid_free=True)
    assert_same(found(system, REQUESTS, settings), found(system, to_books(), settings))


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0, None))
def reported(system, request, reports, levers):
    return system.allocate_each(system.prepare(request, levers), reports)


@pytest.mark.parametrize(("bid_free", "least"), [(False, None), (True, None), (True, 0.9)])
def test_reports_lead_to_what_they_do_in_a_list(bid_free, least):
    """Bids of single ads, below and above those of the book, and the absence of any candidate."""
    own = {} if least is None else {"reserve": np.full(BIDS.size, least)}
    search_bid = np.zeros(BIDS.size) if bid_free else None
    system = system_of(book=ledger(search_bid=search_bid, **own).book)
    rng, settings = np.random.default_rng(1), levers(bid_free=bid_free)
    candidate = rng.integers(-1, REQUESTS.item.shape[1], (ROWS, 8))
    is_ad = np.take_along_axis(REQUESTS.is_ad, np.maximum(candidate, 0), 1)
    there = np.take_along_axis(REQUESTS.item, np.maximum(candidate, 0), 1) >= 0
    candidate = np.where(there, candidate, -1).astype(np.int32)
    bid = rng.choice([ABSENT, 0.0, 0.7, 1.0, 3.0, 9.0], candidate.shape).astype(np.float32)
    bid = np.where(is_ad, bid, np.float32(ABSENT))
    number = [[in_book(system, row, c) for c in candidate[row]] for row in range(ROWS)]
    of_lists = Report(candidate, bid)
    of_books = Report(np.array(number, np.int32), bid)
    of_all = settings if least is None else levers(bid_free=bid_free, reserve=least)
    shown, menus = jax.device_get(reported(system, REQUESTS, of_lists, of_all))
    in_books, its_menus = jax.device_get(reported(system, to_books(), of_books, settings))
    assert_same_slates(shown, in_books)
    assert_same_menus(menus, its_menus)


@pytest.mark.parametrize("smoothing", [0.5, 1.0])
@pytest.mark.parametrize("token_value", ["bid", "ecpm"])
def test_an_ad_takes_part_while_it_bids_its_own_reserve(token_value, smoothing):
    """A report has the slates and prices of a book in which that is the bid."""
    rng = np.random.default_rng(4)
    past, reserve = rng.choice([0.5, 1.0, 2.0], BIDS.size), rng.choice([0.6, 1.5], BIDS.size)
    own = {"search_bid": past, "smoothing": smoothing, "reserve": reserve}
    host, settings = ledger(**own), levers(bid_free=smoothing == 1)
    config = dataclasses.replace(system_of().config, token_value=token_value)
    system_with = lambda book: dataclasses.replace(system_of(book=book), config=config)
    ads = np.where(SIZES > 0, START[:-1], -1)[np.argsort(ORDER)].astype(np.int32)
    least, number = np.where(ads >= 0, reserve[ads], 0.0), ads
    if token_value == "ecpm":  # The book becomes a list, by POI.
        listed = [POIS[START[b] : START[b + 1]] for b in np.argsort(ORDER)]
        number = [(pois < pois[0]).sum() if pois.size else -1 for pois in listed]
    number = np.array(number, np.int32)
    for factor in (0.9, 1.1):
        bid = np.where(ads >= 0, np.float32(factor * least), np.float32(ABSENT))
        report = Report(number, bid)
        one_each = jax.tree.map(lambda x: x[:, None], report)
        expected, its_menus = jax.device_get(
            reported(system_with(host.book), to_books(), one_each, settings)
        )
        again = ledger(**own)
        again.update(ads[ads >= 0], factor * least[ads >= 0])
        shown, menus, _, charged, _ = found(system_with(again.book), to_books(), settings)
        first = lambda tree: jax.tree.map(lambda x: x[:, 0], tree)
        assert_same_slates(shown, first(expected))
        assert_same_menus(menus, first(its_menus))
        below = shown.is_ad & (shown.bid < shown.reserve)
        assert not below.any()
        assert (charged["clarke"][shown.is_ad] >= shown.reserve[shown.is_ad] - 1e-6).all()
        is_own = shown.is_ad & (shown.candidate == number[:, None])
        assert is_own.any() == (factor > 1)


def menus_of(host):
    """The menus of all requests to the present books."""
    return jax.device_get(serve(system_of(book=host.book), to_books(), levers())[2])


def test_no_live_bid_moves_the_menu_of_a_book_of_given_search_bids():
    """Neither a refreshed book nor a report; only values and prices follow live bids."""
    rng = np.random.default_rng(2)
    search_bid = rng.choice([0.5, 1.0, 2.0], BIDS.size)
    host = ledger(search_bid=search_bid)
    before = menus_of(host)
    ads = START[:-1][SIZES > 0]  # One ad of each book.
    for factor in (0.0, 20.0):
        host.update(ads, factor * BIDS[ads])
        after = menus_of(host)
        for name in ("candidate", "item", "creative", "is_ad", "quality", "pctr", "log_z", "where"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        own = np.isin(before.candidate, ads) & before.where[..., None]
        expected = np.where(own, np.float32(factor) * before.bid, before.bid)
        np.testing.assert_allclose(after.bid[before.where], expected[before.where], rtol=1e-6)
        assert (before.value.argmax(-1) != after.value.argmax(-1)).any()


def test_refreshed_bids_are_those_of_a_new_list_and_other_books_stay():
    host = ledger()
    before = found(system_of(book=host.book), to_books(), levers())
    changed = np.argmax(SIZES)
    row, ads = ORDER[changed], np.arange(START[changed], START[changed + 1])
    bid = np.random.default_rng(3).permutation(ads.size).astype(np.float32)
    host.update(ads, bid)
    bids = np.array(REQUESTS.bid)
    bids[row, REQUESTS.is_ad[row]] = bid
    system = system_of(book=host.book)
    after = found(system, to_books(), levers())
    assert_same(found(system, REQUESTS.replace(bid=bids), levers()), after)
    others = np.arange(ROWS) != row
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[others], y[others]), before, after)
    assert (one(before[1], row).bid != one(after[1], row).bid).any()


def forest(books, seed):
    """Many books of a few POIs each."""
    rng = np.random.default_rng(seed)
    pois = np.argsort(rng.random((books, P)), axis=1)[:, :7]
    codes = tiny_ega().items.catalogue.poi_codes
    bid = rng.lognormal(size=pois.size)
    start = np.arange(books + 1) * pois.shape[1]
    return BookLedger(pois.ravel(), bid, start, codes, W, num_slots=K)


def test_another_book_or_forest_neither_compiles_again_nor_sees_the_others():
    once = jax.jit(chex.assert_max_traces(allocate, n=1))
    host = forest(3000, 0)
    for seed, book in enumerate(([0, 1, 2, 2999], [7, 7, 1500, 1])):
        requests = requests_to(book, seed)
        shown, _ = once(system_of(book=host.book), requests, levers())
        for row, number in enumerate(book):
            own = np.asarray(host.book.poi)[7 * number : 7 * number + 7]
            assert set(np.asarray(shown.item[row])[shown.is_ad[row]].tolist()) <= set(own.tolist())
        assert shown.is_ad.any()
    host.update([7 * 1500], [1e6])
    again, _ = once(system_of(book=host.book), requests, levers())
    assert again.bid.max() == 1e6
    other, _ = once(system_of(book=forest(3000, 1).book), requests, levers())
    assert (other.item != again.item).any()


def test_nothing_that_is_computed_per_request_is_as_large_as_a_forest():
    """Neither a copy of the forest for each row of a batch nor an array with an entry per ad."""
    system = system_of(book=forest(3000, 0).book)
    requests = requests_to([0, 1, 2, 2999], 0)

    key = jax.random.key(0)

    def outcomes(system, networks, requests, levers):
        table = lambda request: tabulate_request(system, PRICING, request, levers, key, 2)
        prepared = jax.vmap(lambda request: system.prepare(request, levers))(requests)
        credits = contributions(system, prepared)
        return for_each(system, networks, requests, levers), jax.vmap(table)(requests), credits

    traced = jax.make_jaxpr(outcomes)(system, tiny_mechanism().networks, requests, levers())
    large = {x.shape[0] for x in jax.tree.leaves(system.book) if x.ndim and x.shape[0] > 1000}
    assert len(large) >= C + 2
    shapes = list(shapes_computed(traced.jaxpr))
    assert len(shapes) > 500
    assert not [shape for shape in shapes if large & set(shape)]
    assert max(np.prod(shape) for shape in shapes) < system.book.num_ads
