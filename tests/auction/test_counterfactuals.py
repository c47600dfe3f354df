"""The click curve against allocations run one by one, and Myerson's price read off it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    K,
    alone,
    levers,
    one,
    random_requests,
    serve,
    tiny_ega,
    with_beams,
    with_bid,
    without,
)

from ega_jax.auction.counterfactuals import (
    NUM_RIVALS,
    Counterfactuals,
    Probes,
    counterfactuals,
    matching_bids,
    of_the_menu,
    probed_myerson_price,
)
from ega_jax.auction.system import Bidders
from ega_jax.generation.reports import ABSENT, Report
from ega_jax.payment import rules

PROBES = (0.0, 0.5, 2.0)
FIXED, REFINED = Probes(PROBES), Probes(PROBES, refinements=2)
REQUESTS = random_requests(7, 16)


@functools.partial(jax.jit, static_argnames="probes")
def search(system, prepared, ads, menu, beside, probes=FIXED):
    return counterfactuals(system, probes, prepared, ads, menu, beside)


def known_clicks(bid, clicks):
    """Counterfactuals of ads `[A]` of which only clicks `[A, G]` matter."""
    none = np.zeros(len(bid))
    return Counterfactuals(none, np.zeros((len(bid), NUM_RIVALS)), bid, clicks, clicks)


def refined_by_loop(bids, known_bid, known_clicks, refinements):
    """Bids with the middles of the intervals of largest jump times width, from a known curve."""
    clicks_at = lambda bid: float(known_clicks[np.argmin(np.abs(known_bid - bid))])
    bids = sorted(map(float, bids))
    for _ in range(refinements):
        pairs = list(itertools.pairwise(bids))
        area = [abs(clicks_at(high) - clicks_at(low)) * (high - low) for low, high in pairs]
        widest = sorted(range(len(pairs)), key=lambda i: -area[i])[:2]
        bids = sorted(bids + [sum(pairs[i]) / 2 for i in widest])
    return bids


def matching_by_loop(menu, request, quality, ad):
    """Rivals' scores over the ad's quality, from the menu's slates: `[NUM_RIVALS]`."""
    slates = np.asarray(menu.candidate)[np.asarray(menu.where)]
    rivals = {j for j in slates.ravel().tolist() if j >= 0 and request.is_ad[j]} - {ad}
    needed = sorted(float(request.bid[j]) * quality[j] / quality[ad] for j in rivals)[::-1]
    return (needed + [0.0] * NUM_RIVALS)[:NUM_RIVALS]


@pytest.mark.parametrize("probes", [FIXED, REFINED])
def test_clicks_at_probes_are_those_of_an_allocation_under_that_bid(probes):
    system, row = with_beams(tiny_ega(), 6), one(REQUESTS, slice(3, 4))
    served = serve(system, row, levers())
    prepared, shown, menu = one(served, 0)
    request, ads = one(row, 0), shown.ads
    own = int(ads.ad[np.argmax(shown.is_ad)])
    beside = Report(jnp.array([own, own, -1]), jnp.array([3.0, ABSENT, 0.0]))
    found, also, menus = search(system, prepared, ads, menu, beside, probes)
    serve_one = lambda requests: one(serve(system, requests, levers())[1:], 0)
    quality = np.asarray(alone(system, served[0], row)[1][0])
    for a, ad in enumerate(np.asarray(ads.ad)):
        if ad < 0:
            assert (found.clicks[a] == 0).all()
            continue
        _, menu_without = serve_one(without(row, 0, ad))
        np.testing.assert_allclose(found.without[a], menu_without.value.max(), rtol=1e-5)
        expected = matching_by_loop(menu_without, request, quality, ad)
        np.testing.assert_allclose(found.matching[a], expected, rtol=1e-5)
        assert expected[0] > 0
        at_multiples = np.multiply(PROBES, np.mean(expected))
        bids = refined_by_loop(at_multiples, found.bid[a], found.clicks[a], probes.refinements)
        np.testing.assert_allclose(found.bid[a], bids, rtol=1e-5)
        place = np.searchsorted(bids, at_multiples - 1e-6)
        np.testing.assert_array_equal(found.probed[a], found.clicks[a][place])
        for report, clicks in zip(found.bid[a], found.clicks[a], strict=True):
            again, _ = serve_one(with_bid(row, 0, ad, report))
            place = np.flatnonzero(np.asarray(again.candidate) == ad)
            expected = again.prediction.click_poi[place[0]] if place.size else 0.0
            np.testing.assert_allclose(clicks, expected, rtol=1e-5)
    for number, requests in enumerate((with_bid(row, 0, own, 3.0), without(row, 0, own), row)):
        expected, expected_menu = serve_one(requests)
        np.testing.assert_array_equal(also.candidate[number], expected.candidate)
        np.testing.assert_allclose(menus.value[number], expected_menu.value, rtol=1e-5)


@pytest.mark.parametrize("bid_free", [False, True])
def test_nothing_depends_on_the_own_bid(bid_free):
    """The ad's list has another bid, from which prepared request and menu follow."""
    system, row = with_beams(tiny_ega(), 6), one(REQUESTS, slice(3, 4))
    settings = levers(bid_free=bid_free)
    found = []
    ad = int(np.flatnonzero(row.is_ad[0])[0])
    for factor in (1.0, 0.0, 0.3, 5.0):
        served = serve(system, with_bid(row, 0, ad, factor * row.bid[0, ad]), settings)
        quality = alone(system, served[0], row)[1][0, ad]
        prepared, _, menu = one(served, 0)
        bid, item = row.bid[0, ad][None] * factor, row.item[0, ad][None]
        bidder = Bidders(jnp.array([ad]), bid, quality[None], item)
        found.append(search(system, prepared, bidder, menu, Report.none(1), REFINED)[0])
    for other in found[1:]:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found[0], other)
    assert (found[0].matching > 0).any()
    assert (found[0].clicks > 0).any()


def test_matching_bids_by_a_loop():
    """Ads that occur several times, the own ad, empty slots, more rivals than are kept."""
    rng = np.random.default_rng(0)
    match = jax.jit(matching_bids)
    for rivals in (8, 40):
        ads = rng.integers(-1, 15, rivals).astype(np.int32)
        bid = rng.choice([0.0, 1.0, 2.0, 5.0], 15).astype(np.float32)
        quality = rng.choice([0.0, 0.2, 0.7], 15).astype(np.float32)
        menu = Bidders(ads, bid[ads], quality[ads], ads)
        for ad in range(15):
            own = Bidders(
                jnp.int32(ad), jnp.float32(bid[ad]), jnp.float32(quality[ad]), jnp.int32(ad)
            )
            scores = [bid[j] * max(quality[j], 1e-6) for j in set(ads.tolist()) - {-1, ad}]
            needed = sorted(score / max(quality[ad], 1e-6) for score in scores)[::-1]
            expected = (needed + [0.0] * NUM_RIVALS)[:NUM_RIVALS]
            np.testing.assert_allclose(match(menu, own), expected, rtol=1e-5)


def test_what_the_menu_alone_tells():
    """Rules that need no search read the best slate without an ad's bid; there is no curve."""
    row = one(REQUESTS, slice(3, 4))
    _, shown, menu = one(serve(with_beams(tiny_ega(), 6), row, levers()), 0)
    found = of_the_menu(menu, levers(), shown.ads, Probes((0.0, 1.0), 1))
    for a, ad in enumerate(np.asarray(shown.ads.ad)):
        if ad < 0:
            continue
        worth = [
            sum(b * p for c, b, p in zip(*slate, strict=True) if c not in (ad, -1))
            for slate in zip(menu.candidate.tolist(), menu.bid, menu.pctr, strict=True)
        ]
        worth = [value for value, where in zip(worth, menu.where, strict=True) if where]
        np.testing.assert_allclose(found.without[a], max(worth), rtol=1e-5)
    assert found.bid.shape == found.clicks.shape == (K, 4)
    assert not found.clicks.any()


def test_the_probed_price_is_myersons_where_probes_stand_around_the_jumps():
    """Clicks jump at 1 and 3; probes stand evenly around each jump."""
    curve = lambda b: 0.1 * (b > 1.0) + 0.2 * (b > 3.0)
    probes = np.array([0.0, 0.9, 1.1, 2.9, 3.1])
    known = known_clicks(probes[None], curve(probes)[None])
    for bid in (2.0, 5.0):
        grid = np.linspace(0.0, bid, 20_001)
        expected = float(rules.myerson(grid, curve(grid))) / curve(bid)
        found = probed_myerson_price(known, jnp.array([curve(bid)]))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    further = probed_myerson_price(known, jnp.array([0.6]))[0]
    np.testing.assert_allclose(further, (0.1 * 1 + 0.2 * 3 + 0.3 * 1.5 * 3.1) / 0.6, rtol=1e-5)
    assert probed_myerson_price(known, jnp.zeros(1)) == 0
    no_probes = known_clicks(np.zeros((1, 0)), np.zeros((1, 0)))
    assert probed_myerson_price(no_probes, jnp.ones(1)) == 0


def test_clicks_that_fall_again_are_not_paid_twice():
    known = known_clicks(np.arange(4.0)[None], np.array([[0.0, 0.4, 0.1, 0.2]]))
    found = probed_myerson_price(known, jnp.array([0.4]))[0]
    np.testing.assert_allclose(found, 0.5, rtol=1e-6)
