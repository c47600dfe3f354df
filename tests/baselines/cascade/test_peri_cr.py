"""What a creative adds is separate from the POI, the best one is chosen, and taste is learnt."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_log import ITEMS, SIZES, B, K, N, P, R, T, fit, random_batch, shaken

from ega_jax.baselines.cascade import peri_cr
from ega_jax.baselines.cascade.peri_cr import PeriCR, PeriCRConfig

CONFIG = PeriCRConfig(width=8, num_heads=2, dropout_rate=0.0, **SIZES)
KEY = jax.random.key(0)
OWNED = np.asarray(ITEMS.catalogue.poi_creatives)
SCORE = jax.jit(lambda params, *x: peri_cr.score(params, CONFIG, ITEMS, *x))
CHOOSE = jax.jit(lambda params, *x: peri_cr.choose(params, CONFIG, ITEMS, *x))
LOSS = jax.jit(jax.value_and_grad(peri_cr.peri_cr_loss(CONFIG, ITEMS), has_aux=True))
LOGITS = jax.jit(lambda params, *x: PeriCR(CONFIG).apply({"params": params}, ITEMS, *x))


@pytest.fixture(scope="module")
def params():
    return shaken(jax.jit(lambda key: peri_cr.init(key, CONFIG, ITEMS))(KEY))


def random_request(seed=0):
    rng = np.random.default_rng(seed)
    past = np.arange(T) >= rng.integers(0, T + 1, (B, 1))
    pois = np.where(rng.random((B, N)) < 0.8, rng.integers(0, P, (B, N)), -1)
    ids = lambda high: np.where(past, rng.integers(0, high, (B, T)), -1)
    return tuple(x.astype(np.int32) for x in (ids(P), ids(R), pois))


def attention_by_hand(params, query, keys, where, heads):
    """Softmax attention of one query `[D]` over `keys [T, D]`, zeros where nothing is real."""
    kernel = lambda name: np.asarray(params[name]["kernel"], np.float64)
    width = len(query) // heads
    q, mixed = query @ kernel("query"), np.zeros(len(query))
    real = [t for t in range(len(keys)) if where[t]]
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        exps = [np.exp(q[part] @ (keys[t] @ kernel("key"))[part] * width**-0.5) for t in real]
        for t, weight in zip(real, exps, strict=True):
            mixed[part] += weight / sum(exps) * (keys[t] @ kernel("value"))[part]
    return mixed @ kernel("out")


def test_a_score_by_a_loop(params):
    def embed(kind, table, features, index):
        codes = np.asarray(getattr(ITEMS.catalogue, f"{kind}_codes"))[index]
        rows = np.asarray(table, np.float64)
        tokens = sum(rows[layer * CONFIG.num_codes + code] for layer, code in enumerate(codes))
        kernel = np.asarray(params["item"][f"{kind}_in"]["kernel"], np.float64)
        return tokens + np.asarray(features[index], np.float64) @ kernel

    poi = lambda i: embed("poi", params["item"]["poi_table"], ITEMS.poi_embedding, i)
    creative = lambda i: embed(
        "creative", params["item"]["creative_table"], ITEMS.creative_embedding, i
    )
    history_poi, history_creative = np.array([-1, 3, 0, 5]), np.array([-1, 6, 1, 9])
    recency = np.asarray(params["recency"]["embedding"], np.float64)
    keys = [
        poi(max(p, 0)) + creative(max(c, 0)) + recency[T - 1 - t]
        for t, (p, c) in enumerate(zip(history_poi, history_creative, strict=True))
    ]
    x = creative(7)
    attention = params["taste"]["Attention_0"]
    read = attention_by_hand(attention, x, keys, history_poi >= 0, CONFIG.num_heads)
    state = np.concatenate([x, read, x * read, poi(3)])
    tower = jax.tree.map(lambda w: np.asarray(w, np.float64), params["creative_tower"])
    hidden = np.maximum(state @ tower["Dense_1"]["kernel"], 0)
    expected = hidden @ tower["Dense_0"]["kernel"] + state @ tower["Dense_2"]["kernel"]
    ids = lambda x: np.asarray(x, np.int32)
    found = SCORE(
        params, ids(history_poi), ids(history_creative), ids([3, 4]), ids([[6, 7], [8, -1]])
    )
    assert found[0, 1] == pytest.approx(float(expected[0] + tower["bias"]), rel=1e-4)
    assert found[1, 1] < -1e29


def test_each_poi_gets_its_best_creative(params):
    history_poi, history_creative, pois = random_request()
    chosen = np.asarray(CHOOSE(params, history_poi, history_creative, pois))
    seen = set()
    for row, place in np.ndindex(*pois.shape):
        poi = pois[row, place]
        if poi < 0 or OWNED[poi].max() < 0:
            assert chosen[row, place] == -1
            continue
        alone = SCORE(
            params, history_poi[row], history_creative[row], pois[row, place : place + 1],
            OWNED[poi][None],
        )  # fmt: skip
        best = OWNED[poi][np.argmax(alone[0])]
        assert chosen[row, place] == best
        seen.add((poi, int(best)))
    assert len({poi for poi, _ in seen}) < len(seen), "some choice depends on the user"


def test_a_creative_acts_on_both_responses_through_its_score_alone(params):
    batch = random_batch()
    inputs = list(peri_cr.slates_of(batch))
    before = LOGITS(params, *inputs)
    inputs[3] = np.where(inputs[2] >= 0, (inputs[3] + 1) % R, -1)
    after = LOGITS(params, *inputs)
    pairs = [SCORE(params, *inputs[:3], x[..., None]) for x in (batch["shown_creative"], inputs[3])]
    moved = np.where(batch["shown_poi"] >= 0, pairs[1][..., 0] - pairs[0][..., 0], 0)
    assert np.abs(moved).max() > 1e-2
    for name, scale in zip(peri_cr.RESPONSES, params["scale"], strict=True):
        found = np.where(batch["shown_poi"] >= 0, after[name] - before[name], 0)
        np.testing.assert_allclose(found, scale * moved, atol=1e-4)


def test_what_is_masked_is_removed_and_a_batch_is_a_vmap(params):
    history_poi, history_creative, pois = random_request(1)
    history_poi[:, 0] = history_creative[:, 0] = -1
    owned = OWNED[np.maximum(pois, 0)]
    whole = SCORE(params, history_poi, history_creative, pois, owned)
    shorter = SCORE(params, history_poi[:, 1:], history_creative[:, 1:], pois, owned)
    np.testing.assert_allclose(whole, shorter, rtol=1e-4)
    mapped = jax.jit(jax.vmap(lambda *x: peri_cr.score(params, CONFIG, ITEMS, *x)))
    each = mapped(history_poi, history_creative, pois, owned)
    np.testing.assert_allclose(whole, each, rtol=1e-4)


def test_mixed_precision_is_near(params):
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    *history, pois = random_request()
    request = *history, pois, OWNED[np.maximum(pois, 0)]
    score = jax.jit(lambda params, *x: peri_cr.score(params, half, ITEMS, *x))
    found, exact = score(params, *request), np.asarray(SCORE(params, *request))
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() < 0.05 * exact.max()


def test_loss_by_hand_with_finite_gradients(params):
    batch = random_batch()
    batch["history_poi"][0] = batch["history_creative"][0] = -1
    (loss, (metrics, _)), grads = LOSS(params, (), batch, KEY)
    logits, shown = LOGITS(params, *peri_cr.slates_of(batch)), batch["shown_poi"] >= 0
    total = 0.0
    for name in peri_cr.RESPONSES:
        sign = np.where(batch[name], 1.0, -1.0)
        nll = np.log1p(np.exp(-sign * np.asarray(logits[name], np.float64)))[shown]
        assert metrics[f"nll_{name}"] == pytest.approx(nll.mean(), rel=1e-4)
        total += nll.mean()
    assert loss == pytest.approx(total, rel=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_dropout_follows_the_key(params):
    loss = jax.jit(peri_cr.peri_cr_loss(dataclasses.replace(CONFIG, dropout_rate=0.5), ITEMS))
    one, again, two = (
        loss(params, (), random_batch(), jax.random.key(seed))[0] for seed in (0, 0, 1)
    )
    assert one == again
    assert one != two


def test_it_learns_the_users_taste_and_chooses_by_it():
    """Users of two tastes: who saw even creatives before clicks on even ones."""
    batch, rng = random_batch(rows=256), np.random.default_rng(0)
    odd = rng.integers(0, 2, (256, 1))
    batch["history_poi"][:, -1] = 0
    seen = np.minimum(2 * rng.integers(0, R // 2, (256, T)) + odd, R - 1).astype(np.int32)
    batch["history_creative"] = np.where(batch["history_poi"] >= 0, seen, -1)
    batch["shown_poi"] = rng.integers(0, 4, (256, K)).astype(np.int32)
    batch["shown_creative"] = OWNED[batch["shown_poi"], rng.integers(0, 2, (256, K))]
    batch["click_image"] = batch["click_poi"] = batch["shown_creative"] % 2 == odd
    start = jax.jit(lambda key: peri_cr.init(key, CONFIG, ITEMS))(KEY)
    nll, params = fit(peri_cr.peri_cr_loss(CONFIG, ITEMS), start, batch, 150, "nll_click_image")
    assert np.mean(nll[-10:]) < 0.3 * np.log(2)
    chosen = CHOOSE(params, batch["history_poi"], batch["history_creative"], batch["shown_poi"])
    assert np.mean(np.asarray(chosen) % 2 == odd) > 0.95
