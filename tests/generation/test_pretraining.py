"""The pre-training loss (27)-(29) by hand, what it ignores, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_generator import CATALOGUE, CONFIG, C, K, P, W, forward, init_params, random_batch

from ega_jax.generation.codes import codes_of
from ega_jax.generation.pretraining import (
    code_tree,
    item_nll,
    pretraining_loss,
    slate_nll,
    weighted_mean,
)
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import Sessions

KEY = jax.random.key(3)
LOSS = jax.jit(jax.value_and_grad(pretraining_loss(CONFIG, CATALOGUE), has_aux=True))


@pytest.fixture(scope="module")
def params():
    return init_params()


def loss_of(params, batch):
    (loss, (metrics, _)), grads = LOSS(params, (), batch, KEY)
    return float(loss), metrics, grads


def nll_by_hand(logits, table, ids):
    """`[B, K]` sum over layers of the negative log-probability of each item's codes."""
    nll = np.zeros(ids.shape)
    for b, k in np.ndindex(*ids.shape):
        for layer, code in enumerate(np.asarray(table)[max(ids[b, k], 0)]):
            scores = np.exp(np.asarray(logits[b, k, layer], np.float64))
            nll[b, k] -= np.log(scores[code] / scores.sum())
    return nll


def test_loss_by_hand(params):
    batch = random_batch(rows=4)
    poi, creative = batch["target_poi"], batch["target_creative"]
    logits = jax.jit(forward)(
        params,
        batch["history_poi"],
        batch["history_creative"],
        codes_of(CATALOGUE.poi_codes, poi),
        codes_of(CATALOGUE.creative_codes, creative),
    )
    nll_poi = nll_by_hand(logits.poi, CATALOGUE.poi_codes, poi)
    nll_creative = nll_by_hand(logits.creative, CATALOGUE.creative_codes, creative)
    weight = batch["target_weight"]
    has_creative = weight * (creative >= 0)
    assert (has_creative.sum() > 0) & (has_creative.sum() < weight.sum()), "the case is mixed"
    expected_poi = (nll_poi * weight).sum() / weight.sum()
    expected_creative = (nll_creative * has_creative).sum() / has_creative.sum()
    loss, metrics, _ = loss_of(params, batch)
    np.testing.assert_allclose(metrics["nll_poi"], expected_poi, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll_creative"], expected_creative, rtol=1e-5)
    np.testing.assert_allclose(loss, expected_poi + expected_creative, rtol=1e-5)


def test_slots_without_weight_are_ignored(params):
    """Also as context: they stand on the right, where nothing looks back from."""
    batch = random_batch(rows=4)
    empty = batch["target_weight"] == 0
    assert empty.any()
    other = batch | {
        "target_poi": np.where(empty, 5, batch["target_poi"]).astype(np.int32),
        "target_creative": np.where(empty, 7, batch["target_creative"]).astype(np.int32),
    }
    one, _, one_grads = loss_of(params, batch)
    two, _, two_grads = loss_of(params, other)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one_grads, two_grads)


def test_no_weight_at_all_is_a_loss_of_0_with_zero_gradients(params):
    batch = random_batch(rows=4)
    loss, metrics, grads = loss_of(params, batch | {"target_weight": np.zeros((4, K), np.float32)})
    assert loss == metrics["nll_poi"] == metrics["nll_creative"] == 0
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))


def test_weighted_mean_counts_by_weight():
    values, weights = jnp.array([1.0, 5.0, 9.0]), jnp.array([1.0, 3.0, 0.0])
    np.testing.assert_allclose(weighted_mean(values, weights), (1 + 3 * 5) / 4)
    np.testing.assert_allclose(weighted_mean(values, 10 * weights), (1 + 3 * 5) / 4)
    assert weighted_mean(values, 0 * weights) == 0


def eight_sequences():
    rng = np.random.default_rng(0)
    poi = rng.integers(0, P, (8, K)).astype(np.int32)
    creative = np.asarray(CATALOGUE.poi_creatives)[poi, 0]
    history = np.stack([np.full(4, -1), np.arange(4)]).astype(np.int32)[np.arange(8) % 2]
    history[:, 3] = np.arange(8)
    return {
        "history_poi": history,
        "history_creative": history,
        "target_poi": poi,
        "target_creative": creative,
        "target_weight": np.ones((8, K), np.float32),
    }


def test_memorises_eight_sequences(params):
    optimizer = optax.adam(1e-2)
    loss = pretraining_loss(CONFIG, CATALOGUE)
    step = jax.jit(make_train_step(loss, optimizer, KEY))
    small = jax.tree.map(lambda x: x / 3 if x.ndim > 1 else x, params)  # as at initialisation.
    state = TrainState.create(small, optimizer)
    batch = eight_sequences()
    losses = []
    for _ in range(150):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    chance = 2 * C * np.log(CONFIG.num_codes)
    assert losses[0] > 0.5 * chance
    assert losses[-1] < 0.02 * chance


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_pmap_gives_each_device_the_loss_of_its_rows(params):
    batch = random_batch(rows=16)
    sharded = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), batch)
    loss = pretraining_loss(CONFIG, CATALOGUE)
    parallel = jax.pmap(loss, in_axes=(None, None, 0, None), devices=jax.devices()[:4])
    losses, (metrics, _) = parallel(params, (), sharded, KEY)
    for device in range(4):
        alone, expected, _ = loss_of(params, jax.tree.map(lambda x, d=device: x[d], sharded))
        np.testing.assert_allclose(losses[device], alone, rtol=1e-5)
        np.testing.assert_allclose(metrics["nll_poi"][device], expected["nll_poi"], rtol=1e-5)


def test_rows_are_measured_alone(params):
    """The NLL of a row does not depend on its batch."""
    batch = random_batch(rows=4)
    nll = jax.jit(functools.partial(slate_nll, config=CONFIG, catalogue=CATALOGUE))
    together = nll(params, sessions=Sessions(**batch))
    rolled = nll(params, sessions=Sessions(**{k: np.roll(v, 1, 0) for k, v in batch.items()}))
    for found, expected in zip(rolled, together, strict=True):
        np.testing.assert_allclose(np.roll(found, -1, 0), expected, rtol=1e-5)


def test_likelihoods_of_all_items_sum_to_one_over_the_tree():
    """By hand: a code competes with those that follow the same prefix in the catalogue."""
    rng = np.random.default_rng(7)
    table = np.array([[0, 1], [0, 3], [2, 1], [4, 4], [4, 0], [4, 1]], np.int32)
    logits = rng.normal(size=(2, W)).astype(np.float32)
    expected = []
    for item in table:
        nll = 0.0
        for layer in range(2):
            under = [t for t in table if tuple(t[:layer]) == tuple(item[:layer])]
            scores = [np.exp(logits[layer, code]) for code in {int(t[layer]) for t in under}]
            nll -= np.log(np.exp(logits[layer, item[layer]]) / sum(scores))
        expected.append(nll)
    tiled = jnp.broadcast_to(logits, (len(table), 2, W))
    nll = item_nll(tiled, jnp.asarray(table), jnp.arange(len(table)), code_tree(table, W))
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(-nll).sum(), 1.0, rtol=1e-5)


def test_a_shared_code_has_the_likelihood_of_its_leaf():
    table = np.array([[1, 2], [1, 2], [3, 0]], np.int32)
    logits = jnp.zeros((3, 2, W))
    nll = item_nll(logits, jnp.asarray(table), jnp.arange(3), code_tree(table, W))
    np.testing.assert_allclose(nll, np.full(3, np.log(2.0)), rtol=1e-6)
