"""The preference loss by hand, what is preferred, Peri-CR's creatives, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ega_jax.baselines.one_rec import OneRecConfig, OneRecModels, dpo_loss, preference_loss
from tiny_cascade import CASCADE, tiny_peri_cr
from tiny_models import CONFIG, K, N, levers, random_requests, tiny_models

from ega_jax.auction.alignment import join, split
from ega_jax.auction.ega import candidates_of, offer_with
from ega_jax.auction.system import Menu, allocate, prepare
from ega_jax.baselines import one_rec
from ega_jax.baselines.cascade import peri_cr
from ega_jax.generation import generator
from ega_jax.generation.codes import codes_of
from ega_jax.generation.slate_policy import slate_log_probs
from ega_jax.training.state import TrainState, make_train_step

ROWS, STRENGTH, PART = 24, 0.5, "head_and_last_block"
STEPS, RATE = 24, 0.1
OPTIMIZER = optax.sgd(RATE)
REQUESTS = random_requests(3, ROWS)
BATCH = vars(REQUESTS)
ONE_REC = OneRecConfig(
    generator=CONFIG.generator, reward=CONFIG.reward, num_beams=6, peri_cr=CASCADE.peri_cr
)
LEVERS = levers(bid_free=True)
INDEX = candidates_of(ONE_REC, LEVERS)


@functools.cache
def tiny_one_rec():
    shared = {f.name: getattr(tiny_models(), f.name) for f in dataclasses.fields(tiny_models())}
    return OneRecModels(**shared, peri_cr=tiny_peri_cr())


def test_dpo_loss_by_hand():
    ratio = np.array([[0.0, 0.0], [2.0, -1.0], [-40.0, 60.0]], np.float32)
    expected = [np.log(2), np.log(1 + np.exp(-0.5 * 3)), 0.5 * 100]
    loss, grad = jax.value_and_grad(lambda x: dpo_loss(x, 0.5).sum())(ratio)
    np.testing.assert_allclose(dpo_loss(ratio, 0.5), expected, rtol=1e-6)
    np.testing.assert_allclose(loss, sum(expected), rtol=1e-6)
    slope = 0.5 / (1 + np.exp([0.0, 0.5 * 3, -0.5 * 100]))
    np.testing.assert_allclose(grad, np.stack([-slope, slope], axis=1), rtol=1e-5)


def test_candidates_show_peri_crs_creatives_and_are_else_egas():
    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def offered(models, request):
        history, items = (request.history_poi, request.history_creative), models.items
        memory = generator.encode(models.generator, CONFIG.generator, *history, items.catalogue)
        creative = peri_cr.choose(models.peri_cr, ONE_REC.peri_cr, items, *history, request.item)
        expected = offer_with(tiny_models(), CONFIG, request, memory, creative)
        return prepare(models, ONE_REC, request), expected

    found, expected = jax.device_get(offered(tiny_one_rec(), REQUESTS))
    same = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(same, found, expected)
    first = np.asarray(tiny_models().items.catalogue.poi_creatives)[REQUESTS.item, 0]
    assert (found.creative != first)[REQUESTS.item >= 0].any()


def test_it_shows_peri_crs_creatives_and_bids_only_choose_among_what_it_generates():
    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0))
    def shown(request, bid):
        offer = prepare(tiny_one_rec(), ONE_REC, request)
        found, menu = allocate(tiny_one_rec(), ONE_REC, offer, bid, LEVERS)
        return offer, found, menu

    offer, found, menu = jax.device_get(shown(REQUESTS, REQUESTS.bid))
    filled = found.candidate >= 0
    theirs = np.take_along_axis(offer.creative, np.maximum(found.candidate, 0), axis=1)
    assert filled.any()
    np.testing.assert_array_equal(found.creative, np.where(filled, theirs, -1))
    other = np.random.default_rng(0).permuted(REQUESTS.bid, axis=1) * REQUESTS.is_ad
    _, again, same = jax.device_get(shown(REQUESTS, other))
    np.testing.assert_array_equal(same.candidate, menu.candidate)
    assert (again.candidate != found.candidate).any(), "the slate of the highest revenue"


def test_the_best_and_the_worst_of_the_current_policys_menu_by_a_loop(monkeypatch):
    """Of made-up menus: slate `s` is worth the policy's one parameter times `bid[s]`, if it is."""

    def menu_of(models, config, offer, bid, levers):
        assert (config, levers) == (ONE_REC, LEVERS)
        value = jnp.where(bid >= 0, models.generator * bid, -1e30)
        slates = jnp.broadcast_to(jnp.arange(N)[:, None], (N, K))
        rest = jnp.zeros((N, K))
        return Menu(slates, rest, value, bid >= 0, rest, rest[..., None])

    monkeypatch.setattr(one_rec, "prepare", lambda models, config, request: request)
    monkeypatch.setattr(one_rec, "find_menu", menu_of)
    bid = np.random.default_rng(1).integers(-2, 4, (ROWS, N)).astype(np.float32)
    bid[0], bid[1], bid[:, 3] = -1, 2, 1
    choose = one_rec.pairs_of(tiny_models(), ONE_REC, LEVERS)
    for policy in (1.0, 0.5):
        pairs, where = jax.device_get(choose(jnp.float32(policy), BATCH | {"bid": bid}))
        for b in range(ROWS):
            listed = [value for value in policy * bid[b] if value >= 0]
            assert (pairs[b] == pairs[b, :, :1]).all()
            best, worst = policy * bid[b][pairs[b, :, 0]]
            assert (best, worst) == (max(listed), min(listed))
            assert where[b] == (best > worst)
        assert 0 < where.sum() < ROWS
    opposite, _ = choose(jnp.float32(-1.0), BATCH | {"bid": bid})
    several = where.nonzero()[0]
    assert (bid[several, opposite[several, 0, 0]] < bid[several, pairs[several, 0, 0]]).all()


def two_sessions(seed=2):
    """Of each request, two ways to fill the slate as far as it goes; some requests do not count."""
    rng = np.random.default_rng(seed)
    pairs = np.full((ROWS, 2, K), -1, np.int32)
    for b, way in np.ndindex(ROWS, 2):
        shown = REQUESTS.item[b] >= 0
        ads = rng.permutation(np.flatnonzero(shown & REQUESTS.is_ad[b])).tolist()
        organic = np.flatnonzero(shown & ~REQUESTS.is_ad[b]).tolist()
        kinds = [0] * len(organic) + [1] * len(ads)
        slate = [(ads if kind else organic).pop(0) for kind in rng.permutation(kinds)][:K]
        pairs[b, way, : len(slate)] = slate
    codes = np.asarray(tiny_models().items.catalogue.poi_codes)[REQUESTS.item]
    shown = np.take_along_axis(codes[:, None], np.maximum(pairs, 0)[..., None], axis=2)
    differ = ((shown[:, 0] != shown[:, 1]).any(-1) & (pairs[:, 0] >= 0)).any(-1)
    return {"pair": pairs, "where": differ & (rng.random(ROWS) < 0.8)}


@functools.cache
def sessions():
    return BATCH | two_sessions()


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def margin(params, batch):
    """How much likelier what is preferred is, on average; and all log-probabilities `[B, 2]`."""
    catalogue, config = tiny_models().items.catalogue, CONFIG.generator

    def both(request, pair):
        history = request.history_poi, request.history_creative
        memory = generator.encode(params, config, *history, catalogue)
        codes = codes_of(catalogue.poi_codes, request.item)
        index = INDEX(codes, request.is_ad, 0 * request.bid, request.item >= 0)
        one = lambda slate: slate_log_probs(params, config, memory, index, slate, 1.0, 3.0)
        return jax.vmap(one)(pair).sum((-2, -1))

    found = jax.vmap(both)(REQUESTS, batch["pair"])
    counts = jnp.where(batch["where"], found[:, 0] - found[:, 1], 0.0)
    return counts.sum() / batch["where"].sum(), found


@functools.cache
def step():
    """One step down the gradient for a fixed preference."""
    choose = lambda params, batch: (batch["pair"], batch["where"])
    catalogue = tiny_models().items.catalogue
    loss = preference_loss(CONFIG.generator, PART, STRENGTH, catalogue, choose, INDEX)
    return jax.jit(make_train_step(loss, OPTIMIZER, jax.random.key(0)))


@functools.cache
def trained():
    """States and metrics of a training on one batch."""
    params = tiny_models().generator
    trainable, _ = split(params, CONFIG.generator, PART)
    states, metrics = [TrainState.create(trainable, OPTIMIZER, params)], []
    for _ in range(STEPS):
        state, measured = step()(states[-1], sessions())
        states.append(state)
        metrics.append(jax.device_get(measured))
    return states, metrics


def test_it_starts_at_log_2_and_leans_towards_what_is_preferred():
    states, metrics = trained()
    assert metrics[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert metrics[0]["preferred"] == metrics[0]["rejected"] == metrics[0]["agreement"] == 0
    _, slope = margin(tiny_models().generator, sessions())
    expected, _ = split(slope, CONFIG.generator, PART)
    assert optax.tree.norm(expected) > 0.1
    jax.tree.map(
        lambda x, y, slope: np.testing.assert_allclose(
            (y - x) / RATE, STRENGTH / 2 * slope, atol=1e-4
        ),
        states[0].params,
        states[1].params,
        expected,
    )


def test_requests_without_a_preference_do_not_count():
    states, _ = trained()
    nothing = sessions() | {"where": np.zeros(ROWS, bool)}
    state, metrics = step()(states[0], nothing)
    assert metrics["loss"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, states[0].params)


def test_what_is_preferred_rises_and_what_is_rejected_falls():
    states, metrics = trained()
    _, frozen = split(tiny_models().generator, CONFIG.generator, PART)
    before, after = (
        np.asarray(margin(join(state.params, frozen), sessions())[0][1])
        for state in (states[0], states[-2])
    )
    ratio, last = (after - before)[sessions()["where"]], metrics[-1]
    ahead = ratio[:, 0] - ratio[:, 1]
    expected = {
        "preferred": ratio[:, 0].mean(),
        "rejected": ratio[:, 1].mean(),
        "agreement": (ahead > 0).mean(),
        "loss": np.log1p(np.exp(-STRENGTH * ahead)).mean(),
    }
    for name, value in expected.items():
        assert last[name] == pytest.approx(value, abs=1e-4), name
    assert last["preferred"] > 0.5
    assert last["rejected"] < -0.5
    assert last["agreement"] == 1
    assert last["loss"] < 0.5 * np.log(2)


def test_only_the_part_that_trains_moves():
    states, _ = trained()
    assert states[0].params.keys() == {"poi", "decoder_0"}
    moved = jax.tree.map(lambda x, y: (x != y).any(), states[0].params, states[-1].params)
    assert all(jax.tree.leaves(moved))
    jax.tree.map(np.testing.assert_array_equal, states[-1].variables, tiny_models().generator)
