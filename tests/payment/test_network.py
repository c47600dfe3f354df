"""Prices between 0 and the bid, what each head may see, and gradients that stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.payment.network import HEADS, Context, PaymentConfig, init, price

F, M, G = 3, 4, 2
PRICE = jax.jit(price, static_argnums=(1, 4))
EXTREMES = [0.0, 1e-9, 1e-3, 1.0, 1e3, 1e9]


def random_context(random, *shape):
    others = random.choice(EXTREMES, (*shape, M)) * random.random((*shape, M))
    return Context(
        slate=jnp.asarray(random.normal(size=(*shape, F)), jnp.float32),
        others=jnp.asarray(-np.sort(-others, axis=-1), jnp.float32),
        reach=jnp.asarray(3 * random.random((*shape, G)), jnp.float32),
        exposure=jnp.asarray(random.choice([0.0, 1e-20, 1.0], shape) * random.random(shape), "f4"),
        scale=jnp.asarray(random.choice([1e-9, 1.0, 1e9], shape), jnp.float32),
    )


def random_params(config, spread=1.0):
    """Parameters away from the start, where the output is 0 whatever is seen."""
    params = start(config, random_context(np.random.default_rng(0), 2))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.float32(x + spread / 3 * random.normal(size=x.shape)), params)


def start(config, context):
    return jax.jit(init, static_argnums=1)(jax.random.key(0), config, context)


@pytest.fixture(params=HEADS, scope="module")
def config(request):
    return PaymentConfig(request.param, hidden=(16, 8))


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_prices_are_between_0_and_the_bid(config, spread):
    random = np.random.default_rng(2)
    size = 250_000
    context = random_context(random, size)
    bid = np.float32(random.choice(EXTREMES, size) * random.choice([1.0, random.random()], size))
    prices = np.asarray(PRICE(random_params(config, spread), config, context, bid))
    assert np.isfinite(prices).all()
    assert (prices >= 0).all()
    assert (prices <= bid).all()
    assert (prices[bid == 0] == 0).all()
    assert 0 < np.mean(prices[bid > 0] > 0.01 * bid[bid > 0]) < 1, "prices of several kinds"


def test_the_threshold_is_free_of_bid_and_exposure_and_the_rate_is_a_share_of_the_bid():
    random = np.random.default_rng(3)
    context = random_context(random, 50).replace(scale=jnp.ones(50), others=jnp.ones((50, M)))
    seen_more = context.replace(exposure=jnp.linspace(0.01, 0.99, 50))
    high, higher = jnp.full(50, 1e6), jnp.full(50, 2e6)
    threshold, rate = PaymentConfig("threshold", (16, 8)), PaymentConfig("rate", (16, 8))

    params = random_params(threshold)
    posted = PRICE(params, threshold, context, high)
    np.testing.assert_array_equal(posted, PRICE(params, threshold, seen_more, higher))
    np.testing.assert_array_equal(PRICE(params, threshold, context, posted / 2), posted / 2)

    params = random_params(rate)
    share = PRICE(params, rate, context, high) / high
    np.testing.assert_allclose(PRICE(params, rate, context, higher), share * higher, rtol=1e-6)
    assert np.abs(PRICE(params, rate, seen_more, high) / high - share).max() > 1e-3


def test_prices_scale_with_the_currency(config):
    random = np.random.default_rng(4)
    context = random_context(random, 20).replace(
        scale=jnp.ones(20), others=jnp.asarray(random.random((20, M)), jnp.float32)
    )
    bid = jnp.asarray(random.random(20), jnp.float32)
    dear = context.replace(scale=100.0 * context.scale, others=100.0 * context.others)
    params = random_params(config)
    expected = 100.0 * PRICE(params, config, context, bid)
    np.testing.assert_allclose(PRICE(params, config, dear, 100.0 * bid), expected, rtol=1e-4)


def test_works_without_slate_features_and_probes(config):
    none = jnp.zeros((2, 0))
    context = Context(none, jnp.ones((2, 1)), none, jnp.ones(2), jnp.ones(2))
    price = PRICE(start(config, context), config, context, jnp.ones(2))
    assert price.shape == (2,)
    assert jnp.all((price >= 0) & (price <= 1))


def test_batch_equals_vmap_and_no_jit(config):
    context = random_context(np.random.default_rng(5), 6, 2)
    bid = jnp.linspace(0.0, 3.0, 12).reshape(6, 2)
    params = random_params(config)
    one = lambda c, b: price(params, config, c, b)
    together = one(context, bid)
    each = jax.jit(jax.vmap(jax.vmap(one)))
    np.testing.assert_allclose(each(context, bid), together, rtol=1e-4)
    np.testing.assert_allclose(PRICE(params, config, context, bid), together, rtol=1e-4)


def test_gradients_are_finite_at_extremes(config):
    random = np.random.default_rng(6)
    context, bid = random_context(random, 200), np.float32(random.choice(EXTREMES, 200))
    unit = jnp.asarray(1 / np.maximum(bid, 1e-9), jnp.float32)
    total = lambda params, through: (price(params, config, context, bid, through) * unit).sum()
    for through in (False, True):
        grads = jax.jit(jax.grad(total), static_argnums=1)(random_params(config), through)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_straight_through_moves_a_capped_threshold_and_changes_no_price():
    config = PaymentConfig("threshold", (8,))
    context = Context(
        jnp.zeros((1, F)), jnp.ones((1, M)), jnp.ones((1, G)), jnp.ones(1), jnp.ones(1)
    )
    params = start(config, context)  # A threshold of 1.
    slope = jax.jit(jax.grad(lambda p, b, s: price(p, config, context, b, s)[0]), static_argnums=2)
    for bid, exact in ((1e-9, 0.0), (0.25, 0.0), (4.0, 1.0)):
        bids = jnp.full(1, bid)
        for through in (False, True):
            np.testing.assert_allclose(
                PRICE(params, config, context, bids, through), [min(bid, 1.0)], rtol=1e-6
            )
        found = [slope(params, bids, s)["output"]["bias"][0] for s in (False, True)]
        np.testing.assert_allclose(found, [exact, 1.0], rtol=1e-5)  # expm1(softplus)' at 0.


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="'share' is not one of rate, threshold"):
        PaymentConfig("share")
