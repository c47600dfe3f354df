"""Token values by expected revenue: the search sees bids times click rates, all else sees bids."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from book_requests import in_books
from slates import TinyRequest, all_slates, slate_log_prob
from tiny_models import K, P, W, levers, random_requests, serve, tiny_ega, with_beams

from ega_jax.auction.ecpm import competing_bids, relative_click_rates
from ega_jax.auction.system import slate_value
from ega_jax.generation.ad_book import Worth
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.generation.reports import Report
from ega_jax.reward import model as reward_model
from ega_jax.types import BookRequest

ROWS = 12
REQUESTS = random_requests(5, ROWS)


def by_ecpm(system, **changes):
    config = dataclasses.replace(system.config, token_value="ecpm", **changes)
    return dataclasses.replace(system, config=config)


@jax.jit
def rates(system, requests):
    """Relative click rates `[B, N]` of the requests' items."""

    def one(request):
        memory = system.encode_for_reward(request)
        model = system.reward, system.config.reward, system.items
        return relative_click_rates(*model, memory, request.item, request.is_ad)

    return jax.vmap(one)(requests)


@jax.jit
def menus(system, requests, reports, levers):
    one = lambda request, report: system.find_menu(system.prepare(request, levers), report)
    return jax.vmap(one)(requests, reports)


def by_slate(menu, row):
    """`{candidates: log-probability}` of a menu."""
    where = menu.where[row]
    slates = map(tuple, menu.candidate[row][where].tolist())
    return dict(zip(slates, menu.log_z[row][where].sum(-1), strict=True))


def test_rates_are_those_of_items_alone_over_the_mean_of_the_ads():
    system, found = tiny_ega(), np.asarray(rates(tiny_ega(), REQUESTS))
    for row in range(ROWS):
        there, is_ad = REQUESTS.item[row] >= 0, REQUESTS.is_ad[row]
        if not is_ad.any():
            assert (found[row] == 0).all()
            continue
        memory = system.encode_for_reward(jax.tree.map(lambda x, row=row: x[row], REQUESTS))
        item = REQUESTS.item[row][:, None]
        creative = np.where(item < 0, -1, np.asarray(system.items.catalogue.poi_creatives)[item, 0])
        alone = np.asarray(
            reward_model.predict(
                system.reward, system.config.reward, system.items, memory, item, creative,
                is_ad[:, None],
            ).click_poi[:, 0]
        )  # fmt: skip
        expected = np.where(there, alone / alone[is_ad].mean(), 0.0)
        np.testing.assert_allclose(found[row], expected, rtol=1e-4)


def distinct_codes():
    """The tiny system with POIs that share no full codes, and kappa's enumeration in reach."""
    codes = np.stack(np.divmod(np.random.default_rng(4).permutation(W**2)[:P], W), axis=1)
    catalogue = dataclasses.replace(tiny_ega().items.catalogue, poi_codes=jnp.asarray(codes))
    items = dataclasses.replace(tiny_ega().items, catalogue=catalogue)
    return dataclasses.replace(by_ecpm(tiny_ega()), items=items)


def test_kappa_counts_for_organic_items_as_for_ads():
    """Token bids are the highest `(bid + kappa) * rate` of all items that may follow."""
    system, kappa, given = distinct_codes(), 3.0, levers(kappa=3.0, max_ads=2, min_gap=1)
    prepared, _, menu = jax.device_get(serve(system, REQUESTS, given))
    rate, slates = np.asarray(rates(system, REQUESTS)), 0
    logits_of = jax.jit(system.decoder.slate_logits)
    for row in range(ROWS):
        where = REQUESTS.item[row] >= 0
        request = TinyRequest(
            codes=np.asarray(system.items.catalogue.poi_codes)[REQUESTS.item[row]],
            is_ad=REQUESTS.is_ad[row],
            bid=np.where(where, (REQUESTS.bid[row] + kappa) * rate[row], 0.0),
            where=where,
            max_ads=2,
            min_gap=1,
        )
        memory = jax.tree.map(lambda x, row=row: x[row], prepared.memory.encoded)
        found = by_slate(menu, row)
        listed = list(all_slates(request, K))
        assert found.keys() == {tuple(int(i) for i in items) for items, _, _ in listed}
        for items, codes, steps in listed:
            logits = np.asarray(logits_of(memory, jnp.asarray(codes)), np.float64)
            expected = slate_log_prob(logits, codes, steps, 1.2, 2.0)
            np.testing.assert_allclose(found[tuple(int(i) for i in items)], expected, atol=2e-4)
            slates += 1
    assert slates > 60


@pytest.mark.parametrize(("token_bid", "scope"), [("max", "prefix"), ("mean", "layer")])
def test_the_policy_is_that_of_bids_times_rates_also_under_reports(token_bid, scope):
    rate = np.asarray(rates(tiny_ega(), REQUESTS))
    scaled = REQUESTS.replace(bid=np.float32(REQUESTS.is_ad * rate * REQUESTS.bid))
    ad = np.where(REQUESTS.is_ad.any(1), np.argmax(REQUESTS.is_ad, axis=1), -1).astype(np.int32)
    bid = np.float32(np.where(np.arange(ROWS) % 3, 4.0, -1.0))  # Every third ad is absent.
    own_rate = np.where(ad >= 0, rate[np.arange(ROWS), ad], 1.0)
    seen = np.float32(np.where(bid > 0, bid * own_rate, bid))
    config = {"token_bid": token_bid, "scope": scope}
    plain = dataclasses.replace(tiny_ega(), config=dataclasses.replace(tiny_ega().config, **config))
    for reports, reports_seen in [
        (Report.none(ROWS), Report.none(ROWS)),
        (Report(ad, bid), Report(ad, seen)),
    ]:
        found = jax.device_get(menus(by_ecpm(tiny_ega(), **config), REQUESTS, reports, levers()))
        expected = jax.device_get(menus(plain, scaled, reports_seen, levers()))
        for row in range(ROWS):
            ours, theirs = by_slate(found, row), by_slate(expected, row)
            assert ours.keys() == theirs.keys()
            close = functools.partial(np.testing.assert_allclose, atol=1e-4)
            close([ours[slate] for slate in theirs], list(theirs.values()))
        value = slate_value(found.bid, found.pctr, 0.0)
        np.testing.assert_allclose(found.value[found.where], value[found.where], rtol=1e-5)
        assert set(np.unique(found.bid)) <= {0.0, 0.5, 1.0, 2.0, 4.0, 5.0}


def test_a_reserve_is_a_least_bid_and_no_least_expected_revenue():
    _, shown, menu = jax.device_get(serve(by_ecpm(tiny_ega()), REQUESTS, levers(reserve=1.0)))
    bids = menu.bid[menu.is_ad & menu.where[..., None]]
    assert bids.min() == 1.0
    rate = np.asarray(rates(tiny_ega(), REQUESTS))
    assert (rate[REQUESTS.is_ad & (REQUESTS.bid == 1.0)] < 0.97).any()
    assert shown.is_ad.any()


def test_a_book_leads_to_the_slates_of_a_list():
    system = with_beams(by_ecpm(tiny_ega()), 4)
    _, ledger, batch = in_books(REQUESTS, system)
    to_books = BookRequest(**{name: np.asarray(x) for name, x in batch.items()})
    given = levers(reserve=0.8, max_ads=2, min_gap=1)
    _, shown, menu = jax.device_get(serve(system, REQUESTS, given))
    forest = dataclasses.replace(system, book=ledger.book)
    _, in_book, its_menu = jax.device_get(serve(forest, to_books, given))
    for name in ("item", "creative", "is_ad", "bid", "quality", "log_z"):
        np.testing.assert_allclose(
            getattr(in_book, name), getattr(shown, name), rtol=2e-4, atol=1e-5
        )
    live = np.asarray(menu.where)
    np.testing.assert_array_equal(its_menu.where, live)
    np.testing.assert_allclose(its_menu.value[live], menu.value[live], rtol=2e-4)
    assert (shown.item < P).all()
    assert shown.is_ad.any()


def test_an_ad_that_may_not_be_shown_counts_in_the_mean_and_is_not_shown():
    """Bids below a reserve do not move the rates of others."""
    system = with_beams(by_ecpm(tiny_ega()), 4)
    _, ledger, batch = in_books(REQUESTS, system)
    to_books = BookRequest(**{name: np.asarray(x) for name, x in batch.items()})
    bid = np.asarray(REQUESTS.bid)[REQUESTS.is_ad]
    ledger.replace(bid, eligible=bid >= 1.0)
    forest = dataclasses.replace(system, book=ledger.book)
    _, in_book, _ = jax.device_get(serve(forest, to_books, levers(reserve=1.0)))
    _, shown, _ = jax.device_get(serve(system, REQUESTS, levers(reserve=1.0)))
    np.testing.assert_array_equal(in_book.item, shown.item)
    np.testing.assert_allclose(in_book.log_z, shown.log_z, rtol=2e-4, atol=1e-5)


def test_a_bid_free_search_sees_the_search_bids_of_its_book():
    """A book with past bids leads to slates that live bids do not change."""
    system = with_beams(by_ecpm(tiny_ega()), 4)
    books, _, batch = in_books(REQUESTS, system)
    to_books = BookRequest(**{name: np.asarray(x) for name, x in batch.items()})
    past = np.random.default_rng(0).lognormal(size=books.bid.size).astype(np.float32)
    menus_of = []
    for bid, search_bid in (
        (books.bid, past),
        (3.0 * books.bid, past),
        (books.bid, 2 * past[::-1]),
    ):
        ledger = BookLedger(
            books.poi, bid, books.book_start, system.items.catalogue.poi_codes, W,
            num_slots=K, search_bid=search_bid,
        )  # fmt: skip
        forest = dataclasses.replace(system, book=ledger.book)
        menus_of.append(jax.device_get(serve(forest, to_books, levers(bid_free=True)))[2])
    first, bids_tripled, other_past = menus_of
    np.testing.assert_array_equal(first.item, bids_tripled.item)
    assert (first.item != other_past.item).any()


def test_smoothed_bids_lie_between_live_and_past_ones():
    """The search sees a geometric mean of live and past worth."""
    system = with_beams(by_ecpm(tiny_ega()), 4)
    books, _, batch = in_books(REQUESTS, system)
    to_books = BookRequest(**{name: np.asarray(x) for name, x in batch.items()})
    past = np.full(books.bid.size, 1e-3, np.float32)
    weights = {}
    for smoothing in (0.0, 0.25, 0.5, 1.0):
        ledger = BookLedger(
            books.poi, books.bid, books.book_start, system.items.catalogue.poi_codes, W,
            num_slots=K, search_bid=past, smoothing=smoothing,
        )  # fmt: skip
        forest = dataclasses.replace(system, book=ledger.book)
        prepared, _, _ = jax.device_get(serve(forest, to_books, levers(bid_free=smoothing == 1)))
        seen = prepared.memory.candidates.book.search_bid
        weights[smoothing] = seen[seen >= 0]
    for smoothing, seen in weights.items():
        expected = weights[0.0] ** (1 - smoothing) * weights[1.0] ** smoothing
        np.testing.assert_allclose(seen, expected, rtol=1e-5)


def competing_by_loop(rate, kappa, past, where, rank):
    found = np.zeros(past.size)
    for i in range(past.size):
        others = [rate[j] * (past[j] + kappa) for j in np.flatnonzero(where) if j != i]
        if len(others) >= rank:
            found[i] = max(sorted(others)[-rank] / rate[i] - kappa, 0.0)
    return found


@pytest.mark.parametrize("rank", [1, 2, 5, 9])
@pytest.mark.parametrize("kappa", [0.0, 1.5])
def test_competing_bids_by_a_loop(rank, kappa):
    rng = np.random.default_rng(rank)
    for _ in range(10):
        rate, past = rng.choice([0.5, 1.0, 2.0], 9), rng.choice([0.0, 1.0, 3.0], 9)
        where = rng.random(9) < 0.8
        worth = Worth(jnp.asarray(rate, jnp.float32), jnp.float32(kappa))
        found = competing_bids(worth, jnp.asarray(past, jnp.float32), where, rank)
        expected = competing_by_loop(rate, kappa, past, where, rank)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert np.isfinite(found).all()


def test_ads_pay_what_competing_by_past_bids_takes():
    """In a book of past bids; an ad that bids less is in no slate, and no present bid matters."""
    system = with_beams(by_ecpm(tiny_ega(), reserve_rank=2), 4)
    books, _, batch = in_books(REQUESTS, system)
    to_books = BookRequest(**{name: np.asarray(x) for name, x in batch.items()})
    past = np.random.default_rng(1).lognormal(size=books.bid.size).astype(np.float32)
    codes = system.items.catalogue.poi_codes
    rate, shown_ads = np.asarray(rates(tiny_ega(), REQUESTS)), 0
    for bid in (books.bid, books.bid[::-1].copy()):
        ledger = BookLedger(
            books.poi, bid, books.book_start, codes, W, num_slots=K, search_bid=past
        )
        forest = dataclasses.replace(system, book=ledger.book)
        _, shown, _ = jax.device_get(serve(forest, to_books, levers(bid_free=True)))
        for row in range(ROWS):
            own = slice(*books.book_start[row : row + 2])
            where = np.ones(books.poi[own].size, bool)
            own_rate = rate[row][REQUESTS.is_ad[row]]
            least = competing_by_loop(own_rate, 0.0, past[own], where, 2)
            for slot in np.flatnonzero(shown.is_ad[row]):
                place = np.argmax(books.poi[own] == shown.item[row, slot])
                assert shown.reserve[row, slot] == pytest.approx(least[place], rel=1e-4)
                assert shown.bid[row, slot] >= shown.reserve[row, slot]
                shown_ads += least[place] > 0
    assert shown_ads > 3


def test_a_search_without_bids_ignores_the_rates_too():
    free = levers(bid_free=True)
    _, shown, _ = jax.device_get(serve(by_ecpm(tiny_ega()), REQUESTS, free))
    _, plain, _ = jax.device_get(serve(tiny_ega(), REQUESTS, free))
    np.testing.assert_array_equal(shown.candidate, plain.candidate)
