"""The loss against a loop over slots, and what it must not look at."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_reward import CONFIG, ITEMS, K, init_params, random_batch

from ega_jax.reward.losses import RESPONSES, feedback_loss, reward_loss


def random_logits(seed, shape):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name in RESPONSES}


def nll(logit, happened):
    chance = 1 / (1 + math.exp(-logit))
    return -math.log(chance if happened else 1 - chance)


def test_the_loss_by_a_loop():
    batch = random_batch(rows=6)
    where = batch["shown_poi"] >= 0
    logits = random_logits(0, where.shape)
    parts = {"click_poi": [], "click_image": [], "convert": []}
    for row, slot in zip(*np.nonzero(where), strict=True):
        for name, losses in parts.items():
            if name != "convert" or batch["click_poi"][row, slot]:
                logit = float(logits[name][row, slot])
                losses.append(nll(logit, batch[name][row, slot]))
    loss, metrics = feedback_loss(logits, batch)
    assert loss == pytest.approx(sum(map(sum, parts.values())) / where.sum(), rel=1e-5)
    for name, losses in parts.items():
        assert metrics[f"nll_{name}"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_empty_slots_and_unclicked_conversions_are_not_looked_at():
    batch = random_batch(rows=6)
    where = batch["shown_poi"] >= 0
    logits = random_logits(1, where.shape)
    before = feedback_loss(logits, batch)[0]
    hidden = lambda x, seen: np.where(seen, x, 99.0)
    other = {name: hidden(logits[name], where) for name in ("click_poi", "click_image")}
    other["convert"] = hidden(logits["convert"], where & batch["click_poi"])
    batch["convert"] = batch["convert"] | ~batch["click_poi"]
    assert feedback_loss(other, batch)[0] == pytest.approx(float(before))


def test_nothing_shown_costs_nothing_and_extremes_stay_finite():
    batch = random_batch()
    shape = batch["shown_poi"].shape
    blank = batch | {"shown_poi": np.full(shape, -1)}
    loss, metrics = feedback_loss(random_logits(2, shape), blank)
    assert loss == 0
    assert not any(metrics.values())
    sure = {name: np.full(shape, 1e4, np.float32) for name in RESPONSES}
    grad = jax.grad(lambda x: feedback_loss(x, batch)[0])
    for leaf in jax.tree.leaves(grad(sure)):
        assert np.isfinite(leaf).all()


def test_dropout_follows_the_key():
    config = dataclasses.replace(CONFIG, dropout_rate=0.5)
    loss = jax.jit(reward_loss(config, ITEMS))
    params, batch = init_params(), random_batch()
    one, again, two = (loss(params, (), batch, jax.random.key(seed))[0] for seed in (0, 0, 1))
    assert one == again
    assert one != two


def test_it_learns_that_an_ad_above_tires():
    """Clicks fall with an ad above: the model finds out, its pointwise control cannot."""
    rng = np.random.default_rng(0)
    batch = random_batch(rows=512)
    batch["shown_poi"] = batch["item"][:, :K]
    batch["shown_is_ad"] = rng.random((512, K)) < 0.5
    above = np.cumsum(batch["shown_is_ad"], axis=1) - batch["shown_is_ad"]
    batch["click_poi"] = above == 0

    def final_loss(config):
        loss, optimizer = reward_loss(config, ITEMS), optax.adam(1e-2)
        params = init_params(config)

        @jax.jit
        def fit(params):
            def step(carry, _):
                params, state = carry
                value, grads = jax.value_and_grad(lambda p: metrics(p)["nll_click_poi"])(params)
                updates, state = optimizer.update(grads, state)
                return (optax.apply_updates(params, updates), state), value

            metrics = lambda p: loss(p, (), batch, jax.random.key(0))[1][0]
            return jax.lax.scan(step, (params, optimizer.init(params)), None, 150)[1]

        return float(jnp.mean(fit(params)[-10:]))

    aware = final_loss(CONFIG)
    pointwise = final_loss(dataclasses.replace(CONFIG, permutation_aware=False))
    assert aware < 0.1 * pointwise
