"""The pre-ranker: its table against its towers, the loss by hand, and that it learns tastes."""

import jax
import numpy as np
import pytest
from tiny_log import ITEMS, SIZES, B, K, N, P, T, fit, random_batch, shaken

from ega_jax.baselines.cascade import two_tower
from ega_jax.baselines.cascade.two_tower import TwoTower, TwoTowerConfig

CONFIG = TwoTowerConfig(width=8, dropout_rate=0.0, **SIZES)
KEY = jax.random.key(0)
LOSS = jax.jit(jax.value_and_grad(two_tower.two_tower_loss(CONFIG, ITEMS), has_aux=True))
TABLE = jax.jit(lambda params: two_tower.poi_table(params, CONFIG, ITEMS))
SCORES = jax.jit(lambda params, *x: two_tower.scores(params, CONFIG, ITEMS, *x))
LOGITS = jax.jit(lambda params, *x: TwoTower(CONFIG).apply({"params": params}, ITEMS, *x))


@pytest.fixture(scope="module")
def params():
    return shaken(jax.jit(lambda key: two_tower.init(key, CONFIG, ITEMS))(KEY))


def test_scores_from_the_table_are_the_logits_without_slot_and_flag(params):
    batch, table = random_batch(), TABLE(params)
    assert table.vector.shape == (P, CONFIG.width)
    assert table.bias.shape == (P,)
    history = batch["history_poi"], batch["history_creative"]
    slot = np.random.default_rng(0).integers(0, K, (B, N))
    is_ad = np.arange(N) % 2 == np.zeros((B, 1))
    shown = np.asarray(params["slot"])[slot] + np.asarray(params["ad"])[is_ad.astype(int)]
    expected = LOGITS(params, *history, batch["item"], is_ad, slot) - shown
    found = SCORES(params, table, *history, batch["item"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.std(found) > 0.1


def test_padding_is_not_read_and_recency_counts(params):
    batch, table = random_batch(), TABLE(params)
    history, creative = batch["history_poi"], batch["history_creative"]
    found = SCORES(params, table, history, creative, batch["item"])
    shorter = SCORES(params, table, history[:, 1:], creative[:, 1:], batch["item"])
    short = history[:, 0] < 0
    assert short.any()
    np.testing.assert_allclose(found[short], shorter[short], atol=1e-5)
    turned = SCORES(params, table, history[:, ::-1], creative[:, ::-1], batch["item"])
    full = (history >= 0).sum(1) > 1
    assert np.abs(turned - found)[full].max() > 1e-3
    none = SCORES(params, table, np.full((B, T), -1), np.full((B, T), -1), batch["item"])
    assert np.isfinite(none).all()


def test_loss_by_hand_with_finite_gradients(params):
    batch = random_batch()
    (loss, _), grads = LOSS(params, (), batch, KEY)
    shown = batch["shown_poi"], batch["shown_is_ad"], np.broadcast_to(np.arange(K), (B, K))
    logits = LOGITS(params, batch["history_poi"], batch["history_creative"], *shown)
    chance = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    nll = -np.log(np.where(batch["click_poi"], chance, 1 - chance))
    assert loss == pytest.approx(nll[batch["shown_poi"] >= 0].mean(), rel=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.any(np.asarray(grads["recency"]))


def test_it_learns_what_users_of_an_item_click():
    """Users click the item that follows their last one, and no other."""
    batch, rng = random_batch(rows=256), np.random.default_rng(0)
    last = rng.integers(0, P, 256)
    batch["history_poi"][:, -1] = last
    batch["shown_poi"] = np.stack([rng.permutation(P)[:K] for _ in last]).astype(np.int32)
    batch["click_poi"] = batch["shown_poi"] == ((last + 1) % P)[:, None]
    init = jax.jit(lambda key: two_tower.init(key, CONFIG, ITEMS))(KEY)
    nll, params = fit(two_tower.two_tower_loss(CONFIG, ITEMS), init, batch, 300)
    assert nll[-1] < 0.5 * nll[0]
    every = np.broadcast_to(np.arange(P), (256, P))
    history = batch["history_poi"], batch["history_creative"]
    found = SCORES(params, TABLE(params), *history, every)
    assert np.mean(np.argmax(found, axis=1) == (last + 1) % P) > 0.8
