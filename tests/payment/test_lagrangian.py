"""The Lagrangian (33)-(35) by hand, its schedule, what is masked, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ega_jax.payment import lagrangian, network, regret
from ega_jax.payment.lagrangian import LagrangianConfig
from ega_jax.payment.network import Context, PaymentConfig
from ega_jax.payment.regret import Outcome, Table
from ega_jax.training.state import TrainState, make_train_step

B, K, J, F, M, G = 4, 3, 5, 2, 2, 2
NETWORK = PaymentConfig("rate", hidden=(8,))
CONFIG = LagrangianConfig(
    rho=3.0,
    rho_growth=2.0,
    rho_max=5.0,
    multiplier_init=2.0,
    update_every=2,
    every_report=False,
)
KEY = jax.random.key(0)


def random_outcome(random, *shape):
    """Outcomes of which about a third get no click."""
    draw = lambda *width: np.float32(random.random((*shape, *width)))
    context = Context(draw(F), draw(M), draw(G), draw(), draw() + 0.5)
    return Outcome(draw(), draw() * (draw() > 0.3), context)


def random_table(seed=0):
    random = np.random.default_rng(seed)
    where = random.random((B, K)) > 0.2
    assert not where.all()
    return Table(random_outcome(random, B, K), random_outcome(random, B, K, J), where)


def random_params():
    sample = jax.tree.map(lambda x: x[0, 0], random_table().truth.context)
    params = jax.jit(network.init, static_argnums=1)(KEY, NETWORK, sample)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.float32(random.normal(size=x.shape)), params)


PARAMS = random_params()
STATE = lagrangian.start(CONFIG, K)
GRADIENT = jax.jit(jax.value_and_grad(lagrangian.payment_loss(NETWORK, CONFIG), has_aux=True))


def loss_of(table, state=STATE, params=PARAMS):
    (loss, (metrics, new)), grads = GRADIENT(params, state, regret.batch_of(table), KEY)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    return float(loss), metrics, new, grads


def by_hand(table, clicks="clicks"):
    """Revenue, regret and welfare per slot `[K]`, with loops."""
    prices = jax.jit(network.price, static_argnums=1)
    truth, lies = table.truth, table.misreports
    paid = np.asarray(prices(PARAMS, NETWORK, truth.context, truth.bid))
    lied = np.asarray(prices(PARAMS, NETWORK, lies.context, lies.bid))
    totals = np.zeros((3, K))
    for b, k in np.argwhere(table.where):
        value, x = truth.bid[b, k], truth.clicks[b, k]
        best = max(
            (value - lied[b, k, j]) * lies.clicks[b, k, j] for j in range(lies.bid.shape[-1])
        )
        gain = max(0.0, best - (value - paid[b, k]) * x)
        totals[:, k] += np.array([paid[b, k] * x, gain, value * x]) / B
    return totals


def test_loss_and_multipliers_by_hand():
    table = random_table()
    revenue, regrets, welfare = by_hand(table)
    state = STATE.replace(multipliers=jnp.array([1.0, 2.0, 3.0]), step=jnp.asarray(1))
    loss, metrics, new, _ = loss_of(table, state)
    share = regrets / welfare.sum()
    expected = revenue.sum() / welfare.sum() - (state.multipliers * share).sum()
    expected -= 3.0 / 2 * (share**2).sum()
    np.testing.assert_allclose(loss, -expected, rtol=1e-5)
    np.testing.assert_allclose(new.multipliers, state.multipliers + 3.0 * share, rtol=1e-5)
    np.testing.assert_allclose(metrics["revenue"], revenue.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["regret"], regrets.sum(), rtol=1e-5)
    np.testing.assert_allclose([metrics[f"regret_slot_{k}"] for k in range(K)], regrets, rtol=1e-5)
    ratio = regrets.sum() / (welfare - revenue).sum()
    np.testing.assert_allclose(metrics["regret_over_utility"], ratio, rtol=1e-4)
    assert metrics["multiplier"] == 2.0


def test_every_report_can_be_the_truth_of_one_more_advertiser():
    """The same as a table with those advertisers in rows of their own."""
    table = random_table()
    reports = regret.reports_of(table)
    of = lambda v: jax.tree.map(lambda x: x[:, :, v], reports)
    rows = [Table(of(v), reports, table.where) for v in range(1 + J)]
    apart = jax.tree.map(lambda *x: np.concatenate(x), *rows)
    every = lagrangian.settle(PARAMS, NETWORK, table, every_report=True)
    single = lagrangian.settle(PARAMS, NETWORK, apart)
    for name, amounts in every.items():
        by_value = single[name][..., 0].reshape(1 + J, B, K)
        np.testing.assert_allclose(np.moveaxis(amounts, -1, 0), by_value, rtol=1e-5, atol=1e-6)
    config = dataclasses.replace(CONFIG, every_report=True)
    loss = jax.jit(lagrangian.payment_loss(NETWORK, config))
    found, (metrics, _) = loss(PARAMS, STATE, regret.batch_of(table), KEY)
    np.testing.assert_allclose(found, loss_of(apart)[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["revenue"], loss_of(table)[1]["revenue"], rtol=1e-5)


def test_multipliers_and_rho_move_every_second_step_and_rho_stops_at_its_limit():
    state, rhos, moved = STATE, [], []
    for _ in range(6):
        before = state.multipliers
        state = loss_of(random_table(), state)[2]
        rhos.append(float(state.rho))
        moved.append(bool((state.multipliers > before).all()))
    assert rhos == [3.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    assert moved == [False, True] * 3


def test_currency_and_click_rate_do_not_matter():
    """The loss has no unit, nor do the multipliers."""
    table = random_table()

    def converted(o):
        c = o.context
        context = c.replace(others=7.0 * c.others, scale=7.0 * c.scale)
        return o.replace(bid=7.0 * o.bid, clicks=0.1 * o.clicks, context=context)

    other = table.replace(truth=converted(table.truth), misreports=converted(table.misreports))
    state = STATE.replace(step=jnp.asarray(1))
    one, two = loss_of(table, state), loss_of(other, state)
    np.testing.assert_allclose(two[0], one[0], rtol=1e-4)
    np.testing.assert_allclose(two[2].multipliers, one[2].multipliers, rtol=1e-4)
    np.testing.assert_allclose(two[1]["revenue"], 0.7 * one[1]["revenue"], rtol=1e-4)


def test_what_is_masked_is_not_there():
    """Slots without an ad, and contexts of outcomes without a click."""
    table = random_table()
    other = random_table(seed=5)
    take = lambda mask: (
        lambda x, y: np.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, y)
    )
    mixed = table.replace(
        truth=jax.tree.map(take(table.where), table.truth, other.truth),
        misreports=jax.tree.map(take(table.where), table.misreports, other.misreports),
    )
    lies = mixed.misreports
    context = jax.tree.map(take(lies.clicks > 0), lies.context, other.misreports.context)
    mixed = mixed.replace(misreports=lies.replace(context=context))
    one, two = loss_of(table), loss_of(mixed)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one[3], two[3])


def test_no_ad_at_all_is_a_loss_of_0_with_zero_gradients():
    table = random_table()
    loss, metrics, new, grads = loss_of(table.replace(where=np.zeros((B, K), bool)))
    assert loss == metrics["revenue"] == metrics["regret_over_utility"] == 0
    np.testing.assert_array_equal(new.multipliers, STATE.multipliers)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0.0), grads)


def test_soft_regret_counts_exposure():
    loss = lagrangian.payment_loss(NETWORK, dataclasses.replace(CONFIG, regret="soft"))
    table = random_table()
    metrics = jax.jit(loss)(PARAMS, STATE, regret.batch_of(table), KEY)[1][0]
    soft = table.replace(truth=regret.soft(table.truth), misreports=regret.soft(table.misreports))
    np.testing.assert_allclose(metrics["regret"], by_hand(soft)[1].sum(), rtol=1e-5)
    assert abs(metrics["regret"] - by_hand(table)[1].sum()) > 0.01


def test_sampled_misreports_come_from_the_table_and_change_with_the_key():
    loss = jax.jit(lagrangian.payment_loss(NETWORK, dataclasses.replace(CONFIG, sampled=2)))
    table = random_table()
    pairs = [(i, j) for i in range(J) for j in range(i)]
    possible = []
    for pair in pairs:
        lies = jax.tree.map(lambda x, pair=pair: x[:, :, list(pair)], table.misreports)
        possible.append(by_hand(table.replace(misreports=lies))[1].sum())
    batch = regret.batch_of(table)
    found = [float(loss(PARAMS, STATE, batch, jax.random.key(i))[1][0]["regret"]) for i in range(8)]
    assert all(min(abs(np.array(possible) - value)) < 1e-5 for value in found)
    assert len(set(found)) > 1
    too_many = lagrangian.payment_loss(NETWORK, dataclasses.replace(CONFIG, sampled=6))
    with pytest.raises(ValueError, match="sampled=6, but the table has 5"):
        too_many(PARAMS, STATE, batch, KEY)


def posted_price_table(random):
    """One ad wins whenever it reports at least .6 of what another bids."""
    other = random.uniform(0.5, 1.0, (64, 1, 1)).astype(np.float32)
    value = np.float32(other * random.uniform(0.6, 1.5, other.shape))
    reports = np.float32(value * random.random((64, 1, 16)))

    def outcome(bid):
        one, others = np.ones_like(bid), np.broadcast_to(other, bid.shape)[..., None]
        nothing = np.zeros((*bid.shape, 0), np.float32)
        context = Context(nothing, others, nothing, one, one)
        return Outcome(bid, np.float32(bid >= 0.6 * other), context)

    truth = jax.tree.map(lambda x: x[:, :, 0], outcome(value))
    return Table(truth, outcome(reports), np.ones((64, 1), bool))


@pytest.mark.parametrize("start_at", [-2.0, 1.0], ids=["far below", "above all bids"])
def test_a_threshold_learns_the_price_that_wins(start_at):
    """Also from a first price, where the exact slope of the price is 0 everywhere."""
    config = PaymentConfig("threshold", (64, 16))
    lagrange = LagrangianConfig(rho=10.0, rho_growth=1.02, multiplier_init=10.0, every_report=False)
    random = np.random.default_rng(0)
    context = posted_price_table(random).truth.context
    params = jax.jit(network.init, static_argnums=1)(KEY, config, context)
    params["output"]["bias"] += start_at
    adam = optax.adam(optax.cosine_decay_schedule(0.01, 300), b2=0.99)
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), adam)
    step = jax.jit(make_train_step(lagrangian.payment_loss(config, lagrange), optimizer, KEY))
    posted = jax.jit(lambda p: network.price(p, config, context, jnp.full((64, 1), 9.0)))
    error = lambda p: np.abs(posted(p) / (0.6 * context.others[..., 0]) - 1).mean()

    state = TrainState.create(params, optimizer, lagrangian.start(lagrange, 1))
    assert error(state.params) > 0.5
    for _ in range(300):
        state, _ = step(state, regret.batch_of(posted_price_table(random)))
    assert error(state.params) < 0.05


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_pmap_gives_each_device_the_loss_of_its_rows():
    tables = [regret.batch_of(random_table(seed)) for seed in range(4)]
    sharded = jax.tree.map(lambda *x: np.stack(x), *tables)
    loss = lagrangian.payment_loss(NETWORK, CONFIG)
    parallel = jax.pmap(loss, in_axes=(None, None, 0, None), devices=jax.devices()[:4])
    losses, _ = parallel(PARAMS, STATE, sharded, KEY)
    for seed in range(4):
        np.testing.assert_allclose(losses[seed], loss_of(random_table(seed))[0], rtol=1e-5)


def test_an_unknown_kind_of_regret_is_refused():
    with pytest.raises(ValueError, match="'fixed' is not one of rerun, soft"):
        LagrangianConfig(regret="fixed")
