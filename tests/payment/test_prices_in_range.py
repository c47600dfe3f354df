"""A million random inputs, extreme ones among them: every price lies between 0 and the bid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.payment import rules

COUNT, K = 1_000_000, 4
GRID = np.array([0.0, 0.5, 1.0, 1.0], np.float32)
SHAPES = np.array([[0, 0, 0, 1], [0, 0.3, 0.6, 0.9], [0.8, 0.2, 0.9, 0.1], [0.5] * 4], np.float32)


@pytest.fixture(scope="module")
def inputs():
    """`[COUNT, K]` bids, click rates and ads: among them all equal, none, one, 0 and 1e9."""
    rng = np.random.default_rng(0)
    shape = (COUNT, K)
    ordinary = rng.lognormal(0, 1, shape).astype(np.float32)
    extreme = rng.choice(np.array([0, 1e-9, 1, 1e9], np.float32), shape)
    bid = np.where(rng.random(shape, np.float32) < 0.5, ordinary, extreme)
    bid = np.where(np.arange(COUNT)[:, None] % 5 == 0, bid[:, :1], bid)  # All equal.
    pctr = rng.random(shape, np.float32) * 1.2 - 0.1
    pctr = np.clip(pctr, 0, 1)  # About one in twelve is 0, and one is 1.
    is_ad = rng.random(shape) < rng.choice([0.0, 0.3, 1.0], (COUNT, 1))
    return np.where(is_ad, bid, 0), pctr, is_ad


def check_range(price, bid, free):
    """NaN fails any comparison, so this also says that there is none."""
    price = np.asarray(price)
    assert price.shape == bid.shape
    assert ((price >= 0) & (price <= bid)).all()
    assert (price[free] == 0).all()
    assert (price > 0).any()


def test_the_inputs_hold_the_extremes(inputs):
    bid, pctr, is_ad = inputs
    assert {0, 1, K} <= set(is_ad.sum(1).tolist())
    assert np.isin(np.array([0, 1e-9, 1e9], np.float32), bid[is_ad]).all()
    assert np.isin([0, 1], pctr[is_ad]).all()
    assert (is_ad.all(1) & (bid == bid[:, :1]).all(1)).any()


def clarke_price(bid, pctr, is_ad):
    del is_ad
    return rules.slate_clarke(bid, pctr, bid * pctr * jnp.linspace(-0.5, 1.5, K))


def myerson_price(bid, pctr, is_ad):
    """A step at the bid itself, rising, falling and constant clicks."""
    del is_ad
    return rules.slate_myerson(bid[:, None] * GRID[None], pctr[:, None] * SHAPES)


def reserve_price(bid, pctr, is_ad):
    return rules.with_reserve(bid * pctr, bid, is_ad, 0.7)


SLATE_RULES = {
    "first_price": lambda bid, pctr, is_ad: rules.slate_first_price(bid, is_ad),
    "gsp": lambda bid, pctr, is_ad: rules.slate_gsp(bid, pctr, is_ad, 0.3),
    "clarke": clarke_price,
    "myerson": myerson_price,
    "reserve": reserve_price,
}


@pytest.mark.parametrize("name", SLATE_RULES)
def test_prices_of_a_slate(inputs, name):
    bid, _, is_ad = inputs
    check_range(jax.jit(jax.vmap(SLATE_RULES[name]))(*inputs), bid, ~is_ad)


@pytest.mark.parametrize("reserve", [0.0, 0.7])
def test_prices_of_ranked_auctions(inputs, reserve):
    """Per click for GSP and in total for VCG, against the bid and the worth of the slot's ad."""
    bid, pctr, _ = inputs
    slot_ctr = np.array([0.9, 0.3, 0.1], np.float32)
    rank = jax.jit(
        jax.vmap(
            lambda b, q, r: (*rules.gsp(b, q, 3, r), *rules.vcg(b, q, slot_ctr, r)), (0, 0, None)
        )
    )
    order, price, vcg_order, total = (np.asarray(x) for x in rank(bid, pctr, reserve))
    np.testing.assert_array_equal(order, vcg_order)
    shown = np.where(order >= 0, np.take_along_axis(bid, order, 1), 0)
    check_range(price, shown, order < 0)
    worth = shown * np.take_along_axis(pctr, order, 1) * slot_ctr
    check_range(total, worth, order < 0)
    assert (price[order >= 0] >= np.minimum(reserve, shown[order >= 0])).all()


def test_clarke_payments(inputs):
    """Over the menu of each ad alone, all together at half their clicks, and nothing."""
    bid, pctr, is_ad = inputs
    menu = jnp.concatenate([jnp.eye(K), jnp.full((1, K), 0.5), jnp.zeros((1, K))])
    price = jax.jit(jax.vmap(lambda b, q: rules.clarke(b, menu * q[None])))
    chosen, total = (np.asarray(x) for x in price(bid, pctr))
    clicks = np.asarray(menu)[chosen] * pctr
    check_range(total, bid * clicks, ~is_ad)


def test_myerson_payments(inputs):
    bid, pctr, _ = inputs
    pay = jax.jit(jax.vmap(rules.myerson))
    grid = bid[:, :1] * np.linspace(0, 1, K, dtype=np.float32)
    check_range(pay(grid, pctr), grid[:, -1] * pctr[:, -1], bid[:, 0] == 0)
