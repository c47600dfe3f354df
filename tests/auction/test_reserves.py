"""Monopoly prices of competitors' bids, against a search of all prices."""

import numpy as np
import pytest

from ega_jax.auction.reserves import monopoly_prices


def revenue(others, price):
    return price * (others >= price).sum()


@pytest.mark.parametrize("seed", range(5))
def test_no_price_earns_more_from_the_other_ads_of_a_group(seed):
    rng = np.random.default_rng(seed)
    bid = rng.choice(np.round(rng.lognormal(size=12), 2), 60)  # Some bids are equal.
    group = rng.integers(0, 9, 60)
    for ad, price in enumerate(monopoly_prices(bid, group)):
        others = np.delete(bid, ad)[np.delete(group, ad) == group[ad]]
        best = max((revenue(others, each) for each in others), default=0.0)
        assert revenue(others.astype(np.float32), price) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_an_own_bid_does_not_move_the_own_reserve(seed):
    """Also where prices have equal revenue: bids are small whole numbers."""
    bid, group = np.random.default_rng(seed).integers(0, 5, 30), np.arange(30) % 4
    before = monopoly_prices(bid, group)
    for ad in range(30):
        for own in (0.0, 0.5, 2.0, 3.0, 9.0):
            changed = bid.astype(float)
            changed[ad] = own
            assert monopoly_prices(changed, group)[ad] == before[ad]


def test_a_large_group_needs_no_pairs():
    bid = np.random.default_rng(0).lognormal(size=200_000)
    price = monopoly_prices(bid, np.zeros(len(bid), np.int32))
    best = max(revenue(bid, each) for each in np.sort(bid)[::2000])
    assert (revenue(bid, np.unique(price)[0]) / best) >= 1 - 1e-3
    assert len(np.unique(price)) <= 3  # Hardly any ad moves the price of the others.


def test_an_ad_alone_has_no_reserve():
    np.testing.assert_array_equal(monopoly_prices(np.array([3.0, 2.0]), np.array([1, 0])), 0.0)
    two = monopoly_prices(np.array([3.0, 2.0]), np.array([1, 1]))
    np.testing.assert_array_equal(two, np.array([2.0, 3.0], np.float32))
