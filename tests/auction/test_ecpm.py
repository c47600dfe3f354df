"""Token values by expected revenue: the search sees bids times click rates, all else sees bids."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from book_requests import in_books
from tiny_models import P, levers, random_requests, serve, tiny_ega, with_beams

from ega_jax.auction.ecpm import relative_click_rates
from ega_jax.auction.system import slate_value
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
    """Relative click rates `[B, N]` of the requests' ads."""

    def one(request):
        memory = system.encode_for_reward(request)
        ads = jnp.where(request.is_ad, request.item, -1)
        return relative_click_rates(system.reward, system.config.reward, system.items, memory, ads)

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


def test_rates_are_those_of_ads_alone_over_their_mean():
    system, found = tiny_ega(), np.asarray(rates(tiny_ega(), REQUESTS))
    for row in range(ROWS):
        ads = np.flatnonzero(REQUESTS.is_ad[row])
        if not ads.size:
            assert (found[row] == 0).all()
            continue
        memory = system.encode_for_reward(jax.tree.map(lambda x, row=row: x[row], REQUESTS))
        item = REQUESTS.item[row][ads][:, None]
        creative = np.asarray(system.items.catalogue.poi_creatives)[item, 0]
        alone = reward_model.predict(
            system.reward, system.config.reward, system.items, memory, item, creative, item >= 0
        ).click_poi[:, 0]
        expected = np.zeros(found.shape[1])
        expected[ads] = alone / alone.mean()
        np.testing.assert_allclose(found[row], expected, rtol=1e-4)


@pytest.mark.parametrize(("token_bid", "scope"), [("max", "prefix"), ("mean", "layer")])
def test_the_policy_is_that_of_bids_times_rates_also_under_reports(token_bid, scope):
    """Bids plus kappa, of which the plain system's search sees nothing."""
    rate, kappa = np.asarray(rates(tiny_ega(), REQUESTS)), 0.7
    scaled = REQUESTS.replace(bid=np.float32(REQUESTS.is_ad * rate * (REQUESTS.bid + kappa)))
    ad = np.where(REQUESTS.is_ad.any(1), np.argmax(REQUESTS.is_ad, axis=1), -1).astype(np.int32)
    bid = np.float32(np.where(np.arange(ROWS) % 3, 4.0, -1.0))  # Every third ad is absent.
    own_rate = np.where(ad >= 0, rate[np.arange(ROWS), ad], 1.0)
    seen = np.float32(np.where(bid > 0, (bid + kappa) * own_rate, bid))
    config = {"token_bid": token_bid, "scope": scope}
    plain = dataclasses.replace(tiny_ega(), config=dataclasses.replace(tiny_ega().config, **config))
    for reports, reports_seen in [
        (Report.none(ROWS), Report.none(ROWS)),
        (Report(ad, bid), Report(ad, seen)),
    ]:
        found = jax.device_get(
            menus(by_ecpm(tiny_ega(), **config), REQUESTS, reports, levers(kappa=kappa))
        )
        expected = jax.device_get(menus(plain, scaled, reports_seen, levers()))
        for row in range(ROWS):
            ours, theirs = by_slate(found, row), by_slate(expected, row)
            assert ours.keys() == theirs.keys()
            close = functools.partial(np.testing.assert_allclose, atol=1e-4)
            close([ours[slate] for slate in theirs], list(theirs.values()))
        value = slate_value(found.bid, found.pctr, kappa)
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


def test_a_search_without_bids_ignores_the_rates_too():
    free = levers(bid_free=True)
    _, shown, _ = jax.device_get(serve(by_ecpm(tiny_ega()), REQUESTS, free))
    _, plain, _ = jax.device_get(serve(tiny_ega(), REQUESTS, free))
    np.testing.assert_array_equal(shown.candidate, plain.candidate)
