"""The cascade's funnel: its cuts by loops, and requests to books against lists of their own."""

import functools

import chex
import jax
import numpy as np
import pytest
from book_requests import allocate, requests_to, shapes_computed
from tiny_cascade import UPSTREAM, tiny_cascade, with_funnel
from tiny_models import C, K, P, W, levers, random_requests, tiny_ega

from ega_jax.auction.outcomes import tabulate_request
from ega_jax.auction.pricing import PricingConfig
from ega_jax.baselines.cascade import hstu, two_tower
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.generation.reports import ABSENT, Report
from ega_jax.mechanism import Mechanism
from ega_jax.types import BookRequest

ROWS = 24
REQUESTS = random_requests(3, ROWS)
ORDER = np.random.default_rng(0).permutation(ROWS)  # Book v lists the ads of request `ORDER[v]`.
START = np.append(0, np.cumsum(REQUESTS.is_ad.sum(1)[ORDER]))
BIDS = np.concatenate([REQUESTS.bid[row][REQUESTS.is_ad[row]] for row in ORDER])
POIS = np.concatenate([REQUESTS.item[row][REQUESTS.is_ad[row]] for row in ORDER])
CODES = tiny_ega().items.catalogue.poi_codes
PRICING = PricingConfig(hidden=(8, 4), probes=(0.0, 1.0), heads=())
LIMITS = {"reserve": 0.8, "max_ads": 2, "min_gap": 1}
EVERYTHING = {"recall_share": 1.0, "most_recalled": 99}
NARROW = EVERYTHING | {"num_preranked": 3, "num_ranked": 2}
FUNNELS = [{}, EVERYTHING, NARROW]


def ledger(**arguments):
    return BookLedger(POIS, BIDS, START, CODES, W, num_slots=K, **arguments)


@functools.cache
def to_books():
    """The requests of `REQUESTS`, whose ads are in books."""
    organic = np.full(REQUESTS.item.shape, -1, np.int32)
    for row in range(ROWS):
        own = REQUESTS.item[row][(REQUESTS.item[row] >= 0) & ~REQUESTS.is_ad[row]]
        organic[row, : own.size] = own
    book = np.argsort(ORDER).astype(np.int32)
    return BookRequest(REQUESTS.history_poi, REQUESTS.history_creative, organic, book)


def in_book(book, row, candidate):
    """The candidate of a request's list as the request to a book numbers it."""
    if candidate < 0:
        return -1
    is_ad = REQUESTS.is_ad[row]
    if is_ad[candidate]:
        return START[np.argmax(row == ORDER)] + is_ad[:candidate].sum()
    return book.num_ads + (~is_ad[:candidate]).sum()


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0, None))
def reported(system, request, reports, levers):
    prepared = system.prepare(request, levers)
    return prepared.memory, *system.allocate_each(prepared, reports)


def outcomes(system, requests, candidate, bid, settings):
    return jax.device_get(reported(system, requests, Report(candidate, bid), settings))


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("budgets", FUNNELS)
@pytest.mark.parametrize("changes", [{}, LIMITS, {"bid_free": True}])
def test_a_book_leads_to_what_a_list_does_under_any_report(budgets, changes):
    """Nothing reported, bids of single ads, and the absence of any candidate."""
    rng, shape = np.random.default_rng(1), (ROWS, 8)
    candidate = rng.integers(-1, REQUESTS.item.shape[1], shape).astype(np.int32)
    candidate[:, 0] = -1
    of = lambda values: np.take_along_axis(values, np.maximum(candidate, 0), 1)
    candidate = np.where(of(REQUESTS.item) >= 0, candidate, -1)
    bid = rng.choice([ABSENT, 0.0, 0.7, 3.0, 9.0], shape).astype(np.float32)
    bid = np.where(of(REQUESTS.is_ad), bid, np.float32(ABSENT))
    system, settings = with_funnel(**budgets), levers(**changes)
    system = system.replace(book=ledger().book)
    number = [[in_book(system.book, row, c) for c in candidate[row]] for row in range(ROWS)]
    lists = outcomes(system, REQUESTS, candidate, bid, settings)
    books = outcomes(system, to_books(), np.array(number, np.int32), bid, settings)
    for mine, other in zip(lists[1:], books[1:], strict=True):
        for name in ("item", "creative", "is_ad", "bid", "quality", "log_z"):
            close(getattr(mine, name), getattr(other, name))
    close(lists[2].value, books[2].value)
    close(lists[2].rivals.score, books[2].rivals.score)
    for row in range(ROWS):
        expected = [in_book(system.book, row, c) for c in lists[1].candidate[row, 0]]
        assert books[1].candidate[row, 0].tolist() == expected
    assert lists[1].is_ad.any()


def test_each_stage_keeps_the_best_by_its_own_score():
    models, system = tiny_cascade(), with_funnel(**NARROW)
    upstream, items = models.upstream, models.items
    history = REQUESTS.history_poi, REQUESTS.history_creative
    likes = two_tower.scores(
        upstream.two_tower, UPSTREAM.two_tower, items, upstream.poi_table, *history, REQUESTS.item
    )
    none = np.full((ROWS, 1), -1, np.int32)
    passed, shown, _ = outcomes(system, REQUESTS, none, none.astype(np.float32), levers())
    everything = outcomes(with_funnel(**EVERYTHING), REQUESTS, none, none.astype(float), levers())
    cuts = 0
    for row in range(ROWS):
        ads = np.flatnonzero(REQUESTS.is_ad[row])
        assert sorted(n for n in passed.recalled[row] if n >= 0) == ads.tolist()
        first = sorted(ads, key=lambda n: -likes[row, n])[:3]
        whole = everything[0].ranked
        click = dict(zip(whole.candidate[row].tolist(), whole.click[row].tolist(), strict=True))
        best = sorted(first, key=lambda n: -click[n])[:2]
        kept = passed.ranked.candidate[row][passed.ranked.is_ad[row]]
        assert kept.tolist() == sorted(best)
        assert {n for n in shown.candidate[row, 0] if n in ads} <= set(best)
        cuts += len(ads) > len(first) > len(best)
    assert cuts > 3


def test_a_funnel_that_keeps_all_is_hstu_on_all():
    passed = outcomes(
        with_funnel(**EVERYTHING), REQUESTS, np.full((ROWS, 1), -1), np.zeros((ROWS, 1)), levers()
    )[0]
    ranked, models = passed.ranked, tiny_cascade()
    rank = jax.jit(lambda *x: hstu.rank(models.upstream.hstu, UPSTREAM.hstu, models.items, *x))
    slot = np.zeros_like(ranked.item)
    of = REQUESTS.history_poi, REQUESTS.history_creative, ranked.item, ranked.creative
    expected = rank(*of, ranked.is_ad, slot)
    there = ranked.item >= 0
    close(ranked.click[there], np.asarray(expected.click)[there])
    close(ranked.state[there], np.asarray(expected.state)[there])
    assert ranked.is_ad.sum() == REQUESTS.is_ad.sum()


def test_an_absent_ad_is_not_replaced():
    system = with_funnel(**NARROW)
    none = np.full((ROWS, 1), -1, np.int32)
    passed = outcomes(system, REQUESTS, none, none.astype(np.float32), levers())[0]
    ads = np.where(passed.ranked.is_ad, passed.ranked.candidate, -1)
    gone = ads.max(axis=1)
    _, shown, menus = outcomes(system, REQUESTS, gone[:, None], none.astype(np.float32), levers())
    for row in np.flatnonzero(gone >= 0):
        left = set(ads[row].tolist()) - {gone[row], -1}
        assert set(menus.rivals.ad[row, 0].tolist()) - {-1} == left
        assert set(shown.candidate[row, 0][shown.is_ad[row, 0]].tolist()) <= left


def test_the_reserve_is_the_auctions():
    """Recall and ranking do not look at it; ads that bid less are not listed."""
    none = np.full((ROWS, 1), -1, np.int32)
    run = lambda **changes: outcomes(
        with_funnel(**NARROW), REQUESTS, none, none.astype(np.float32), levers(**changes)
    )
    free, dear = run(), run(reserve=1.5)
    jax.tree.map(np.testing.assert_array_equal, free[0], dear[0])
    assert dear[1].bid[dear[1].is_ad].min() >= 1.5 > free[1].bid[free[1].is_ad].min()


def test_organic_items_of_a_book_that_has_their_ad_are_left_out():
    book, row = ledger().book, int(np.argmax(REQUESTS.is_ad.sum(1)))
    requests = to_books()
    twin = REQUESTS.item[row, 0]
    organic = requests.organic.copy()
    others = [p for p in range(P) if p not in REQUESTS.item[row][REQUESTS.is_ad[row]]][:2]
    organic[row] = [others[0], twin, others[1], -1, -1, -1]
    system = tiny_cascade().replace(book=book)
    none = np.full((ROWS, 1), -1, np.int32)
    requests = requests.replace(organic=organic)
    ranked = outcomes(system, requests, none, none.astype(np.float32), levers())[0].ranked
    places = [place for place in ranked.organic[row] if place >= 0]
    assert ranked.item[row, places].tolist() == others
    assert ranked.candidate[row, places].tolist() == [book.num_ads, book.num_ads + 2]


def mechanism(**arguments):
    system = with_funnel(**NARROW).replace(book=ledger(**arguments).book)
    return Mechanism(system, {}, PRICING, levers(), "gsp")


def test_a_mechanism_serves_books_in_any_order_of_bids():
    """Recall sees no bids, so a book in the order of live bids serves a bid-free auction, too."""
    live, given = mechanism(), mechanism(search_bid=np.zeros(BIDS.size))
    for rule in live.choices:
        changes = {} if rule == "truthful" else {"reserve": 0.8}
        expected = jax.device_get(live.allocate(REQUESTS, rule, **changes))
        for served in (live, given):
            slate = jax.device_get(served.allocate(to_books(), rule, **changes))
            jax.tree.map(close, slate, expected)
        paid = expected.price_per_click.any()
        assert paid == (rule != "truthful"), "a menu of one slate has no externality"
    dear = mechanism(reserve=np.full(BIDS.size, 1.5)).allocate(to_books(), "gsp")
    assert dear.price_per_click[dear.is_ad].min() >= 1.5
    explained = live.explain(to_books(), 0)
    np.testing.assert_array_equal(explained.items, live.allocate(to_books()).items[0])


def forest(books, seed):
    """Many books of a few POIs each."""
    rng = np.random.default_rng(seed)
    pois = np.argsort(rng.random((books, P)), axis=1)[:, :7]
    start = np.arange(books + 1) * pois.shape[1]
    return BookLedger(pois.ravel(), rng.lognormal(size=pois.size), start, CODES, W, num_slots=K)


def test_another_book_or_forest_neither_compiles_again_nor_sees_the_others():
    once = jax.jit(chex.assert_max_traces(allocate, n=1))
    host = forest(3000, 0)
    for seed, book in enumerate(([0, 1, 2, 2999], [7, 7, 1500, 1])):
        system = tiny_cascade().replace(book=host.book)
        shown, menu = once(system, requests_to(book, seed), levers())
        for row, number in enumerate(book):
            own = range(7 * number, 7 * number + 7)
            assert set(np.asarray(menu.rivals.ad[row]).tolist()) - {-1} <= set(own)
        assert shown.is_ad.any()
    other = tiny_cascade().replace(book=forest(3000, 1).book)
    again, _ = once(other, requests_to([7, 7, 1500, 1], 1), levers())
    assert (again.item != shown.item).any()


@pytest.mark.parametrize("budgets", FUNNELS)
def test_nothing_that_is_computed_per_request_is_as_large_as_a_forest(budgets):
    system = with_funnel(**budgets).replace(book=forest(3000, 0).book)
    key = jax.random.key(0)

    def table(system, requests, levers):
        one = lambda request: tabulate_request(system, PRICING, request, levers, key, 2)
        return jax.vmap(one)(requests), allocate(system, requests, levers)

    traced = jax.make_jaxpr(table)(system, requests_to([0, 1, 2, 2999], 0), levers())
    large = {x.shape[0] for x in jax.tree.leaves(system.book) if x.ndim and x.shape[0] > 1000}
    assert len(large) >= C + 2
    shapes = list(shapes_computed(traced.jaxpr))
    assert len(shapes) > 500
    assert not [shape for shape in shapes if large & set(shape)]
    assert max(np.prod(shape) for shape in shapes) < system.book.num_ads
