"""The click curve against allocations run one by one, and Myerson's price read off it."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import K, N, levers, one, random_requests, serve, tiny_ega, with_beams

from ega_jax.auction.counterfactuals import (
    Counterfactuals,
    counterfactuals,
    probed_myerson_price,
)
from ega_jax.payment import rules

PROBES = (0.0, 0.5, 2.0)
REQUESTS = random_requests(7, 16)


@jax.jit
def search(system, prepared, bid, ads, menu, beside):
    return counterfactuals(system, PROBES, prepared, bid, levers(), ads, menu, beside)


def test_clicks_at_probes_are_those_of_an_allocation_under_that_bid():
    system, row = with_beams(tiny_ega(), 6), one(REQUESTS, slice(3, 4))
    prepared, shown, menu = one(serve(system, row, levers()), 0)
    bid, request = jnp.asarray(row.bid[0]), one(row, 0)
    ads = jnp.where(shown.is_ad, shown.candidate, -1)
    assert (ads >= 0).any()
    beside = jnp.stack([bid, bid * 3])
    found, also, _ = search(system, prepared, bid, ads, menu, beside)
    at_bid = lambda bids: one(serve(system, row.replace(bid=np.float32(bids)[None]), levers()), 0)
    quality = np.asarray(prepared.quality)
    for a, ad in enumerate(np.asarray(ads)):
        if ad < 0:
            assert (found.clicks[a] == 0).all()
            continue
        asked = [
            float(bid[j]) * quality[j] / quality[ad]
            for j in range(N)
            if j != ad and request.is_ad[j]
        ]
        scale = sum(sorted(asked)[::-1][:10]) / 10
        np.testing.assert_allclose(found.bid[a], np.multiply(PROBES, scale), rtol=1e-5)
        for report, clicks in zip(found.bid[a], found.clicks[a], strict=True):
            again = at_bid(bid.at[ad].set(report))[1]
            place = np.flatnonzero(np.asarray(again.candidate) == ad)
            expected = again.prediction.click_poi[place[0]] if place.size else 0.0
            np.testing.assert_allclose(clicks, expected, rtol=1e-5)
    best_without = jax.jit(lambda ad: system.find_menu(prepared, bid, levers(), ad).value.max())
    without = [best_without(ad) for ad in ads]
    np.testing.assert_allclose(found.without, without, rtol=1e-5)
    for number, bids in enumerate(beside):
        np.testing.assert_array_equal(also.candidate[number], at_bid(bids)[1].candidate)


def test_nothing_depends_on_the_own_bid():
    system, row = with_beams(tiny_ega(), 6), one(REQUESTS, slice(3, 4))
    prepared, shown, menu = one(serve(system, row, levers()), 0)
    slot = int(np.argmax(shown.is_ad))
    own, bid = shown.candidate[slot], jnp.asarray(row.bid[0])
    ads = jnp.full(K, -1).at[slot].set(own)
    beside = jnp.stack([bid, bid])
    one_bid, _, _ = search(system, prepared, bid, ads, menu, beside)
    other, _, _ = search(system, prepared, bid.at[own].mul(5.0), ads, menu, beside)
    for name in ("without", "bid", "clicks"):
        a, b = getattr(one_bid, name)[slot], getattr(other, name)[slot]
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_probed_price_is_myersons_where_probes_stand_around_the_jumps():
    """Clicks jump at 1 and 3; probes stand evenly around each jump."""
    curve = lambda b: 0.1 * (b > 1.0) + 0.2 * (b > 3.0)
    probes = np.array([0.0, 0.9, 1.1, 2.9, 3.1])
    known = Counterfactuals(np.zeros(1), probes[None], curve(probes)[None])
    for bid in (2.0, 5.0):
        grid = np.linspace(0.0, bid, 20_001)
        expected = float(rules.myerson(grid, curve(grid))) / curve(bid)
        found = probed_myerson_price(known, jnp.array([curve(bid)]))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    further = probed_myerson_price(known, jnp.array([0.6]))[0]
    np.testing.assert_allclose(further, (0.1 * 1 + 0.2 * 3 + 0.3 * 1.5 * 3.1) / 0.6, rtol=1e-5)
    assert probed_myerson_price(known, jnp.zeros(1)) == 0
    no_probes = Counterfactuals(np.zeros(1), np.zeros((1, 0)), np.zeros((1, 0)))
    assert probed_myerson_price(no_probes, jnp.ones(1)) == 0


def test_clicks_that_fall_again_are_not_paid_twice():
    known = Counterfactuals(np.zeros(1), np.arange(4.0)[None], np.array([[0.0, 0.4, 0.1, 0.2]]))
    found = probed_myerson_price(known, jnp.array([0.4]))[0]
    np.testing.assert_allclose(found, 0.5, rtol=1e-6)
