"""The curve of an ad against one allocation per bid, and Myerson's price against a loop."""

import functools

import jax
import numpy as np
import pytest
from tiny_mechanism import ROWS, filled_up, requests_with_ads_last, tiny_mechanism

from ega_jax.playground import bid_curve as module
from ega_jax.playground.bid_curve import BidCurve, bid_curve, reports

ROW = 4  # Of the requests: it has several ads.
REQUEST = jax.tree.map(lambda x: np.asarray(x)[ROW : ROW + 1], requests_with_ads_last(3, 6))
ADS = np.flatnonzero(REQUEST.is_ad[0])
AD = int(ADS[REQUEST.bid[0, ADS].argmax()])
BIDS = reports(float(REQUEST.bid[0, AD]), float(REQUEST.bid[0, AD]), 6.0)


@functools.cache
def curve(rule, **levers):
    return bid_curve(tiny_mechanism(), REQUEST, AD, BIDS, rule, **levers)


def one_by_one(rule, picked, **levers):
    """Click rate and price of the ad, 0 where it is not shown, from an allocation at each bid."""
    bids = np.repeat(REQUEST.bid, len(picked), axis=0)
    bids[:, AD] = BIDS[picked]
    single = jax.tree.map(lambda x: x[0], REQUEST)
    slate = jax.device_get(tiny_mechanism().allocate(filled_up(single, bids), rule, **levers))
    own = (slate.is_ad & (slate.items == REQUEST.item[0, AD]))[: len(picked)]
    of_own = lambda x: np.where(own, x[: len(picked)], 0.0).sum(axis=1)
    return of_own(slate.pctr), of_own(slate.price_per_click)


@pytest.mark.parametrize("rule", ["first_price", "gsp", "clarke", "threshold", "truthful"])
def test_each_bid_gets_what_a_request_with_that_bid_gets(rule):
    found, picked = curve(rule), np.linspace(0, len(BIDS) - 1, ROWS).astype(int)
    clicks, price = one_by_one(rule, picked)
    assert (clicks > 0).any(), "the test looks at an ad that is shown"
    np.testing.assert_allclose(found.clicks[picked], clicks, rtol=1e-4)
    np.testing.assert_allclose(found.price[picked], price, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found.bid, BIDS)


def test_levers_reach_the_curve():
    assert not curve("gsp", max_ads=0).clicks.any()
    below = BIDS < 1.5
    limited = curve("gsp", reserve=1.5)
    assert not limited.clicks[below].any()
    assert (limited.price[limited.clicks > 0] >= 1.5).all()


def test_myersons_price_is_the_bid_less_the_mean_clicks_below_it():
    found, total = curve("gsp"), 0.0
    for place in range(1, len(BIDS)):
        step = found.bid[place] - found.bid[place - 1]
        total += step * (found.clicks[place] + found.clicks[place - 1]) / 2
        if found.clicks[place] > 0:
            price = found.bid[place] - total / found.clicks[place]
            np.testing.assert_allclose(
                found.myerson[place], np.clip(price, 0, found.bid[place]), atol=1e-9
            )


def test_other_ads_bids_and_levers_compile_nothing_again():
    curve("gsp")
    compiled = module._outcomes._cache_size()
    bid_curve(tiny_mechanism(), REQUEST, int(ADS[-1]), 0.5 * BIDS, "threshold", alpha=0.7)
    assert module._outcomes._cache_size() == compiled


@pytest.mark.parametrize(
    ("bid", "value", "highest"), [(2.0, 1.3, 5.0), (0.0, 0.0, 4.0), (7.0, 1.0, 4.0)]
)
def test_bids_rise_from_0_and_include_the_present_one_and_the_value(bid, value, highest):
    bids = reports(bid, value, highest)
    assert len(bids) == len(BIDS)
    assert bids[0] == 0
    assert (np.diff(bids) >= 0).all()
    assert {np.float32(bid), np.float32(value)} <= set(bids)
    assert bids[-1] == max(bid, highest)


def test_the_best_bid_gains_what_its_utility_is_above_the_honest_one():
    clicks, price = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.0, 0.5, 1.0, 2.6])
    found = BidCurve(np.array([0.0, 1.0, 2.0, 3.0]), clicks, price, price)
    # At a value of 3: utilities 0, .25, .4 and .12.
    best, gain = found.gain(3.0)
    assert best == 2.0
    np.testing.assert_allclose(gain, 0.4 - 0.12)
    assert found.gain(2.0) == (2.0, 0.0), "utilities 0, .15, .2 and -.18"
    assert found.at(2.2) == 2
