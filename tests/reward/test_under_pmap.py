"""Reward and payment functions on four devices by `pmap`: what `jit` gives on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny_reward

from ega_jax.payment import lagrangian, network, regret, rules
from ega_jax.payment.lagrangian import LagrangianConfig
from ega_jax.payment.network import Context, PaymentConfig
from ega_jax.payment.regret import Outcome, Table

DEVICES, ROWS, K, J = 4, 3, 3, 5
DUALS = LagrangianConfig(sampled=3, every_report=False)


def split(tree):
    """Rows spread over the devices, `[DEVICES * ROWS, ...]` to `[DEVICES, ROWS, ...]`."""
    return jax.tree.map(lambda x: jnp.reshape(x, (DEVICES, -1, *x.shape[1:])), tree)


def assert_equal_to_jit(function, *shared_and_spread):
    """Compares `function(shared, spread)` under `pmap` with `jit` on each device's rows."""
    shared, spread = shared_and_spread
    assert jax.local_device_count() == DEVICES
    found = jax.pmap(function, in_axes=(None, 0))(shared, split(spread))
    compiled = jax.jit(function)
    for device in range(DEVICES):
        rows = jax.tree.map(lambda x, device=device: x[device], split(spread))
        mine = jax.tree.map(lambda x, device=device: x[device], found)
        check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(check, mine, compiled(shared, rows))
    for leaf in jax.tree.leaves(found):
        assert len(leaf.sharding.device_set) == DEVICES


def test_reward_predictions():
    with jax.numpy_rank_promotion("allow"):
        params = tiny_reward.init_params()
        assert_equal_to_jit(tiny_reward.predict, params, tiny_reward.random_batch(rows=12))


def outcome(rng, *shape):
    """Outcomes of which about a third get no click."""
    draw = lambda *width: np.float32(rng.random((*shape, *width)))
    context = Context(draw(2), draw(4), draw(3), draw(), draw() + 0.5)
    return Outcome(draw(), draw() * (draw() > 0.3), context)


def random_table():
    rng, rows = np.random.default_rng(0), DEVICES * ROWS
    truth, lies = outcome(rng, rows, K), outcome(rng, rows, K, J)
    return Table(truth, lies, rng.random((rows, K)) > 0.2)


def random_params(head):
    config, table = PaymentConfig(head, (8,)), random_table()
    sample = jax.tree.map(lambda x: x[0, 0], table.truth.context)
    shapes = jax.eval_shape(lambda key: network.init(key, config, sample), jax.random.key(0))
    rng = np.random.default_rng(1)
    return config, jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), shapes)


def test_prices_and_what_lying_gains():
    for head in network.HEADS:
        config, params = random_params(head)

        def amounts(params, table, config=config):
            price = network.price(params, config, table.truth.context, table.truth.bid)
            return price, lagrangian.settle(params, config, table, every_report=True)

        assert_equal_to_jit(amounts, params, random_table())


def test_rules_of_slates():
    rng = np.random.default_rng(2)
    bid, pctr = np.float32(rng.random((2, 12, K)))
    rows = {"bid": bid, "pctr": pctr, "is_ad": rng.random((12, K)) < 0.7}

    def prices(losing_score, rows):
        gsp = jax.vmap(rules.slate_gsp, in_axes=(0, 0, 0, None))
        clarke = jax.vmap(rules.slate_clarke)
        bid = jnp.where(rows["is_ad"], rows["bid"], 0.0)
        found = gsp(bid, rows["pctr"], rows["is_ad"], losing_score)
        return found, clarke(bid, rows["pctr"], 0.5 * bid * rows["pctr"])

    assert_equal_to_jit(prices, jnp.float32(0.1), rows)


def test_the_loss_its_gradient_and_the_multipliers():
    config, params = random_params("threshold")
    loss = jax.value_and_grad(lagrangian.payment_loss(config, DUALS), has_aux=True)
    shared = (params, lagrangian.start(DUALS, K), jax.random.key(3))

    def step(shared, batch):
        params, state, key = shared
        return loss(params, state, batch, key)

    assert_equal_to_jit(step, shared, regret.batch_of(random_table()))
