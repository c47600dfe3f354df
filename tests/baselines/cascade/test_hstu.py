"""The attention against loops, who sees whom, and that clicks are learnt from the history."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_log import ITEMS, SIZES, B, K, N, P, R, T, fit, random_batch, shaken

from ega_jax.baselines.cascade import hstu
from ega_jax.baselines.cascade.hstu import HSTUConfig, HSTULayer
from ega_jax.generation.transformer import KeysValues

CONFIG = HSTUConfig(width=8, num_heads=2, blocks=2, dropout_rate=0.0, **SIZES)
KEY = jax.random.key(0)
RANK = jax.jit(lambda params, *x: hstu.rank(params, CONFIG, ITEMS, *x))
LOSS = jax.jit(jax.value_and_grad(hstu.hstu_loss(CONFIG, ITEMS), has_aux=True))


@pytest.fixture(scope="module")
def params():
    return shaken(jax.jit(lambda key: hstu.init(key, CONFIG, ITEMS))(KEY))


def random_request(seed=0):
    """Histories of one behaviour at least, candidates with creatives, flags and slots."""
    rng = np.random.default_rng(seed)
    past = np.arange(T) >= rng.integers(0, T, (B, 1))
    where = lambda real, high: np.where(real, rng.integers(0, high, real.shape), -1)
    real = rng.random((B, N)) < 0.8
    request = where(past, P), where(past, R), where(real, P), where(real, R)
    ids = [np.asarray(x, np.int32) for x in request]
    return (*ids, rng.random((B, N)) < 0.5, rng.integers(0, K, (B, N)).astype(np.int32))


def silu(x):
    return x / (1 + np.exp(-x))


def layer_norm(x, weights):
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return x * np.asarray(weights["scale"], np.float64) + np.asarray(weights["bias"], np.float64)


def layer_by_hand(params, x, seen, heads, reach):
    """One unit over the positions `x [L, D]`, position by position and head by head."""
    width = x.shape[1] // heads
    kernel = np.asarray(params["project"]["kernel"], np.float64)
    bias = np.asarray(params["bias"], np.float64)
    u, v, q, k = np.split(
        np.stack([silu(layer_norm(row, params["norm"]) @ kernel) for row in x]), 4, axis=1
    )
    out = np.zeros_like(x)
    for t in range(len(x)):
        mixed = np.zeros(x.shape[1])
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for s in range(t + 1):
                if s == t or seen[s]:
                    score = silu(q[t, part] @ k[s, part] + bias[head, t - s])
                    mixed[part] += score / reach * v[s, part]
        gated = layer_norm(mixed, params["mixed_norm"]) * u[t]
        out[t] = x[t] + gated @ np.asarray(params["out"]["kernel"], np.float64)
    return out


def test_a_unit_by_a_loop():
    rng = np.random.default_rng(0)
    layer, x = HSTULayer(8, 2, T, "float32"), rng.normal(size=(T + 1, 8))
    seen = np.array([False, True, True, False])  # The history; a candidate follows.
    place = np.arange(T)
    distance = np.maximum(place[:, None] - place, 0)
    before = jnp.asarray(seen[None, :] & (place[:, None] > place))
    history = jnp.asarray(x[:T], jnp.float32)
    candidate = jnp.asarray(x[T:], jnp.float32)
    params = shaken(layer.init(KEY, history, None, distance, before)["params"])
    run = lambda *inputs: layer.apply({"params": params}, *inputs)
    states, past = run(history, None, distance, before)
    assert isinstance(past, KeysValues)
    last, _ = run(candidate, past, T - place[None, :], jnp.asarray(seen[None, :]))
    expected = layer_by_hand(params, x, seen, heads=2, reach=T)
    np.testing.assert_allclose(states, expected[:T], atol=2e-5)
    np.testing.assert_allclose(last, expected[T:], atol=2e-5)


def test_a_candidate_sees_no_other_and_blanks_get_nothing(params):
    *history, poi, creative, is_ad, slot = random_request()
    ranking = RANK(params, *history, poi, creative, is_ad, slot)
    for values in (ranking.click, ranking.convert):
        assert np.all(np.asarray(values)[poi < 0] == 0)
        assert np.all((np.asarray(values)[poi >= 0] > 0) & (np.asarray(values)[poi >= 0] < 1))
    order = np.random.default_rng(1).permutation(N)
    moved = RANK(params, *history, *(x[:, order] for x in (poi, creative, is_ad, slot)))
    for name in ("click", "convert", "state"):
        found, expected = getattr(moved, name), np.asarray(getattr(ranking, name))[:, order]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    other = np.concatenate([(poi[:, :1] + 1) % P, poi[:, 1:]], axis=1)
    changed = RANK(params, *history, other, creative, is_ad, slot).click
    np.testing.assert_allclose(changed[:, 1:], ranking.click[:, 1:], atol=1e-6)
    assert np.abs(changed[:, 0] - ranking.click[:, 0]).min() > 1e-5


def test_each_input_counts(params):
    request = list(random_request(1))
    before = np.asarray(RANK(params, *request).click)
    real = request[2] >= 0
    changes = [
        (0, np.where(request[0] >= 0, (request[0] + 1) % P, -1)),
        (1, np.where(request[1] >= 0, (request[1] + 1) % R, -1)),
        (3, (request[3] + 1) % R),
        (4, ~request[4]),
        (5, (request[5] + 1) % K),
    ]
    for place, value in changes:
        other = [*request[:place], value, *request[place + 1 :]]
        moved = np.abs(np.asarray(RANK(params, *other).click) - before)[real]
        assert moved.min() > 1e-6, place


def test_what_is_masked_is_removed_and_a_batch_is_a_vmap(params):
    history_poi, history_creative, *rest = random_request(2)
    history_poi[:, 0] = history_creative[:, 0] = -1
    whole = RANK(params, history_poi, history_creative, *rest)
    shorter = RANK(params, history_poi[:, 1:], history_creative[:, 1:], *rest)
    np.testing.assert_allclose(whole.click, shorter.click, atol=1e-6)
    each = jax.jit(jax.vmap(lambda *x: hstu.rank(params, CONFIG, ITEMS, *x)))
    mapped = each(history_poi, history_creative, *rest)
    np.testing.assert_allclose(whole.click, mapped.click, atol=1e-6)


def test_mixed_precision_is_near(params):
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    request = random_request()
    found = jax.jit(lambda params, *x: hstu.rank(params, half, ITEMS, *x))(params, *request)
    exact = RANK(params, *request)
    assert found.click.dtype == found.convert.dtype == jnp.float32
    assert 0 < np.abs(found.click - exact.click).max() < 0.02


def test_loss_by_hand_with_finite_gradients(params):
    batch = random_batch()
    batch["history_poi"][0] = batch["history_creative"][0] = -1
    (loss, (metrics, _)), grads = LOSS(params, (), batch, KEY)
    slots = np.broadcast_to(np.arange(K), (B, K)).astype(np.int32)
    shown = batch["shown_poi"], batch["shown_creative"], batch["shown_is_ad"], slots
    history = batch["history_poi"], batch["history_creative"]
    ranking = RANK(params, *history, *shown)
    parts = {"click_poi": [], "convert": []}
    for row, slot in zip(*np.nonzero(batch["shown_poi"] >= 0), strict=True):
        for name, chance in (("click_poi", ranking.click), ("convert", ranking.convert)):
            if name == "click_poi" or batch["click_poi"][row, slot]:
                p = float(chance[row, slot])
                parts[name].append(-np.log(p if batch[name][row, slot] else 1 - p))
    assert loss == pytest.approx(sum(map(sum, parts.values())) / len(parts["click_poi"]), rel=1e-4)
    for name, nll in parts.items():
        assert metrics[f"nll_{name}"] == pytest.approx(np.mean(nll), rel=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_dropout_follows_the_key(params):
    loss = jax.jit(hstu.hstu_loss(dataclasses.replace(CONFIG, dropout_rate=0.5), ITEMS))
    one, again, two = (
        loss(params, (), random_batch(), jax.random.key(seed))[0] for seed in (0, 0, 1)
    )
    assert one == again
    assert one != two


def test_it_learns_that_users_click_what_they_had_before():
    """A click is an item seen in the history: no item is better than another for everyone."""
    batch = random_batch(rows=256)
    had = (batch["shown_poi"][:, :, None] == batch["history_poi"][:, None, :]).any(-1)
    batch["click_poi"] = had & (batch["shown_poi"] >= 0)
    share = batch["click_poi"].sum() / (batch["shown_poi"] >= 0).sum()
    naive = -share * np.log(share) - (1 - share) * np.log(1 - share)
    params = jax.jit(lambda key: hstu.init(key, CONFIG, ITEMS))(KEY)
    nll, _ = fit(hstu.hstu_loss(CONFIG, ITEMS), params, batch, 150, "nll_click_poi")
    assert naive > 0.4
    assert np.mean(nll[-10:]) < 0.5 * naive
