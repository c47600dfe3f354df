"""The lists that CGA writes, its loss by hand, and that it learns to keep likes apart."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_market import MARKET, small_market
from tiny_log import fit, shaken

from ega_jax.baselines.cascade import cga
from ega_jax.baselines.cascade.cga import Ads, CGAConfig, CGAPhaseSettings, Generator
from ega_jax.data import pipeline
from ega_jax.training.loop import train
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics

L, N, F, ROWS = 3, 6, 4, 200
CONFIG = CGAConfig(num_ads=L, width=8, num_heads=2, hidden=8)
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, ROWS)
RNG = np.random.default_rng


def per_request(function):
    """A function of parameters, sizes and one request, compiled for a batch of requests."""
    return jax.jit(lambda params, *x: jax.vmap(lambda *x: function(params, CONFIG, *x))(*x))


GENERATE, LOG_PROBS = per_request(cga.generate), per_request(cga.list_log_probs)


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(lambda key: cga.init(key, CONFIG, F))(KEY)


@pytest.fixture(scope="module")
def params(fresh):
    return shaken(fresh, noise=1.0)


def random_ads(seed=0, rows=ROWS):
    """Requests: the first offers nothing, the second one ad, the third ads that bid nothing."""
    rng = RNG(seed)
    where = rng.random((rows, N)) < rng.random((rows, 1))
    where[:3] = [[False], [False], [True]]
    where[1, 4] = True
    bid = rng.lognormal(size=(rows, N)) * (rng.random((rows, N)) < 0.9)
    bid[2] = 0
    quality = rng.uniform(0.01, 0.3, (rows, N)).astype(np.float32)
    state = np.eye(F, dtype=np.float32)[rng.integers(0, 2, (rows, N))]
    return Ads(state, quality, bid.astype(np.float32), where)


def close_ads(seed, rows=ROWS):
    """Requests full of ads with about the same eCPM, so that it matters what they follow."""
    ads, rng = random_ads(seed, rows), RNG(seed + 1)
    bid = rng.uniform(1, 2, (rows, N)).astype(np.float32)
    return dataclasses.replace(ads, bid=bid, where=np.ones((rows, N), bool))


def half_after_a_like(ads, lists):
    """An evaluator: an ad's quality, halved right behind an ad with the same state."""
    take = jax.vmap(lambda values, lists: values[jnp.maximum(lists, 0)])
    kind, quality = take(jnp.argmax(ads.state, axis=-1), lists), take(ads.quality, lists)
    alike = jnp.pad(kind[..., 1:] == kind[..., :-1], ((0, 0), (0, 0), (1, 0)))
    return jnp.where(lists >= 0, quality * jnp.where(alike, 0.5, 1.0), 0.0)


def judged(ads):
    """Ads with their evaluator."""
    return ads, functools.partial(half_after_a_like, ads)


def value_by_hand(ads, row, listed):
    total, before = 0.0, None
    for ad in listed:
        if ad >= 0:
            kind = np.argmax(ads.state[row, ad])
            chance = ads.quality[row, ad] * (0.5 if kind == before else 1)
            total, before = total + chance * ads.bid[row, ad], kind
    return total


LOSS = jax.jit(jax.value_and_grad(cga.cga_loss(CONFIG, judged), has_aux=True))


def test_lists_are_valid_and_as_likely_as_said(params):
    ads = random_ads()
    for keys in ((), (KEYS,)):
        lists, log_probs = (np.asarray(x) for x in GENERATE(params, ads, *keys))
        for listed, where in zip(lists, ads.where, strict=True):
            number = min(L, where.sum())
            assert np.all(listed[number:] == -1)
            assert np.all(where[listed[:number]])
            assert len(set(listed[:number])) == number
        np.testing.assert_allclose(LOG_PROBS(params, ads, lists), log_probs, atol=1e-5)
        assert np.all(log_probs[lists < 0] == 0)
        assert np.isfinite(log_probs).all()
        assert log_probs.min() < -0.1


def log_probs_by_hand(params, ads, listed):
    """One request, ad by ad, with what the network says of each that is left."""
    run = lambda method, *x: Generator(CONFIG).apply({"params": params}, *x, method=method)
    reading = run("read", ads)
    state, left, found = reading.start, list(np.flatnonzero(ads.where)), []
    for ad in listed:
        logits = np.asarray(run("point", reading, state), np.float64)
        found.append(logits[ad] - np.log(sum(np.exp(logits[other]) for other in left)))
        left.remove(ad)
        state = run("extend", state, reading.context[ad])
    return found


def test_chances_by_a_loop_add_up_and_are_drawn(params):
    ads = jax.tree.map(lambda x: x[5], random_ads())
    ads = dataclasses.replace(ads, where=np.array([True, False, True, True, True, False]))
    lists = list(itertools.permutations((0, 2, 3, 4), L))
    many = jax.tree.map(lambda x: np.broadcast_to(x, (ROWS, *x.shape)), ads)
    padded = np.array(lists + lists[:1] * (ROWS - len(lists)), np.int32)
    log_probs = np.asarray(LOG_PROBS(params, many, padded))[: len(lists)]
    for place in (0, 7, 23):
        expected = log_probs_by_hand(params, ads, lists[place])
        np.testing.assert_allclose(log_probs[place], expected, atol=1e-4)
    chance = np.exp(log_probs.sum(-1))
    assert chance.sum() == pytest.approx(1, abs=1e-5)
    likely = np.exp(log_probs[:, 0])
    drawn = np.asarray(GENERATE(params, many, KEYS)[0])[:, 0]
    for ad in (0, 2, 3, 4):
        share = likely[[listed[0] == ad for listed in lists].index(True)]
        assert np.mean(drawn == ad) == pytest.approx(share, abs=4 * (0.25 / ROWS) ** 0.5)


def test_the_start_is_the_order_of_ecpm(fresh):
    ads = random_ads()
    lists, log_probs = GENERATE(fresh, ads)
    for row in range(3, ROWS):
        score = np.where(ads.where[row], ads.quality[row] * ads.bid[row], -1)
        order = np.argsort(-score, kind="stable")[: min(L, ads.where[row].sum())]
        assert list(lists[row][: len(order)]) == list(order)
        cubes = np.maximum(score[ads.where[row]], 0) ** 3  # A softmax of three times the log.
        if cubes.max(initial=0) > 0:
            assert np.exp(log_probs[row, 0]) == pytest.approx(cubes.max() / cubes.sum(), rel=1e-3)


def test_order_unit_and_what_is_masked_do_not_matter(params):
    ads, rng = random_ads(), RNG(1)
    lists, log_probs = (np.asarray(x) for x in GENERATE(params, ads))
    order = rng.permutation(N)
    moved, found = GENERATE(params, jax.tree.map(lambda x: x[:, order], ads))
    moved = np.asarray(moved)
    np.testing.assert_array_equal(np.where(moved >= 0, order[moved], -1), lists)
    np.testing.assert_allclose(found, log_probs, atol=1e-4)
    others = dataclasses.replace(ads, bid=ads.bid * 100)
    noise = lambda x: rng.uniform(1, 9, x.shape).astype(np.float32)
    hidden = jax.tree.map(
        lambda x: np.where(ads.where.reshape(ROWS, N, *[1] * (x.ndim - 2)), x, noise(x)), ads
    )
    hidden = dataclasses.replace(hidden, where=ads.where)
    for same in (others, hidden):
        again, found = GENERATE(params, same)
        np.testing.assert_array_equal(again, lists)
        np.testing.assert_allclose(found, log_probs, atol=1e-4)


def test_mixed_precision_is_near(params):
    ads, half = random_ads(), dataclasses.replace(CONFIG, dtype="bfloat16")
    lists, exact = GENERATE(params, ads)
    said = jax.jit(jax.vmap(lambda *x: cga.list_log_probs(params, half, *x)))(ads, lists)
    _, written = jax.jit(jax.vmap(lambda ads: cga.generate(params, half, ads)))(ads)
    assert said.dtype == written.dtype == jnp.float32
    assert 0 < np.abs(said - exact).mean() < 0.02, "nats; these parameters are large"
    assert np.isfinite(written).all()


def test_every_input_counts(params):
    ads = random_ads()
    lists, before = GENERATE(params, ads)
    changes = {"state": np.roll(ads.state, 1, -1), "quality": ads.quality[::-1]}
    for name, value in (changes | {"bid": ads.bid[::-1]}).items():
        after = LOG_PROBS(params, dataclasses.replace(ads, **{name: value}), lists)
        assert np.mean(np.abs(after - before)[3:, 0] > 1e-4) > 0.5, name


def test_loss_by_hand_with_finite_gradients(params):
    ads = random_ads(2)
    (loss, (metrics, _)), grads = LOSS(params, (), ads, KEY)
    sampled = np.asarray(GENERATE(params, ads, KEYS)[0])
    greedy = np.asarray(GENERATE(params, ads)[0])
    gain = np.zeros((ROWS, L))
    for row in range(ROWS):
        gain[row] = value_by_hand(ads, row, sampled[row]) - value_by_hand(ads, row, greedy[row])
    filled = sampled >= 0
    weight = (gain - gain[filled].mean()) / gain[filled].std() * filled

    def by_hand(params):
        return -(weight * LOG_PROBS(params, ads, sampled)).sum() / ROWS

    expected, expected_grads = jax.value_and_grad(by_hand)(params)
    assert loss == pytest.approx(float(expected), rel=1e-3)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-4), grads, expected_grads
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    values = [value_by_hand(ads, row, sampled[row]) for row in range(ROWS)]
    assert metrics["value"] == pytest.approx(np.mean(values), rel=1e-4)
    values = [value_by_hand(ads, row, greedy[row]) for row in range(ROWS)]
    assert metrics["greedy_value"] == pytest.approx(np.mean(values), rel=1e-4)


def test_a_click_is_worth_its_bid_and_kappa():
    bid, pctr = np.float32([[1.0, 2.0, 4.0]]), np.float32([[[0.5, 0.25, 0.0]]])
    lists = np.array([[[2, 0, -1]]])
    np.testing.assert_allclose(cga.list_values(bid, pctr, lists, 0.0), [[2.25]])
    np.testing.assert_allclose(cga.list_values(bid, pctr, lists, 3.0), [[4.5]])


def test_it_learns_to_keep_likes_apart(fresh):
    """On requests that it never saw, most of what eCPM leaves to the best list."""
    loss = cga.cga_loss(CONFIG, judged)
    _, trained = fit(loss, fresh, close_ads(3, rows=128), 80)
    ads, lists = close_ads(4), [*itertools.permutations(range(N), L)]
    best = [max(value_by_hand(ads, row, listed) for listed in lists) for row in range(ROWS)]
    ecpm, found = (
        LOSS(params, (), ads, KEY)[0][1][0]["greedy_value"] for params in (fresh, trained)
    )
    assert np.mean(best) > 1.05 * ecpm
    assert found - ecpm > 0.7 * (np.mean(best) - ecpm)


def test_a_phase_trains_and_is_measured(tmp_path):
    """Where ads do not disturb each other, the best list is that of the highest bids."""
    dataset, _ = small_market()

    def view(batch):
        where = batch["is_ad"] & (batch["item"] >= 0)
        state = jax.nn.one_hot(batch["item"] % F, F)
        ads = Ads(state, jnp.full(where.shape, 0.1), batch["bid"], where)
        return ads, lambda lists: jnp.where(lists >= 0, 0.1, 0.0)

    settings = CGAPhaseSettings(
        batch_size=32, num_steps=6, schedule="constant", warmup_steps=0, clip_norm=None,
        checkpoint_every=6, log_every=2, evaluate_every=3,
    )  # fmt: skip
    phase = cga.cga_phase(
        dataset, CONFIG, settings, 0, history_length=MARKET.history_length, state_width=F,
        view=view,
    )  # fmt: skip
    assert phase.name == "cga"
    train(phase, workdir=tmp_path, config={}, mesh=data_mesh(jax.devices()[:1]))
    records = read_metrics(tmp_path / "metrics" / "cga.jsonl")
    assert {"loss", "value", "greedy_value", "list_log_prob"} <= records[-1].keys()
    batches = list(
        pipeline.eval_batches(dataset, "align", batch_size=32, history_length=MARKET.history_length)
    )
    bids = np.concatenate([np.where(x["is_ad"], x["bid"], 0) for x in batches])
    bids = bids[np.concatenate([(x["item"] >= 0).any(1) for x in batches])]  # Blank rows count not.
    expected = 0.1 * np.sort(bids, axis=1)[:, -L:].sum(1).mean()
    assert records[-1]["eval/greedy_value"] == pytest.approx(expected, rel=0.02)


def test_standardised_values_have_mean_0_and_variance_1():
    rng = np.random.default_rng(0)
    where = rng.random((ROWS, L)) < 0.6
    r = np.where(where, rng.lognormal(size=(ROWS, L)), np.nan).astype(np.float32)
    found = np.asarray(cga.standardise(r, where))
    np.testing.assert_allclose(found[where], (r[where] - r[where].mean()) / r[where].std(),
                               atol=1e-5)  # fmt: skip
    assert (found[~where] == 0).all()
    np.testing.assert_allclose(cga.standardise(1e-6 * r, where), found, atol=1e-5)
    np.testing.assert_allclose(cga.standardise(1e6 * r, where), found, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_what_does_not_vary_becomes_0(value, share):
    where = np.random.default_rng(1).random((40, L)) < share
    found = cga.standardise(jnp.full((40, L), value), where)
    assert (np.asarray(found) == 0).all()
