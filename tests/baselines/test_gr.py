"""The preference loss by hand, what is preferred, Peri-CR's creatives, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from tiny_cascade import tiny_gr
from tiny_models import K, N, W, alone, batch_of, levers, random_requests, serve, tiny_ega

from ega_jax.auction.ega import EGA
from ega_jax.auction.system import Bidders, Menu
from ega_jax.baselines import gr
from ega_jax.baselines.cascade import peri_cr
from ega_jax.baselines.gr import best_and_worst, dpo_loss, preference_loss
from ega_jax.generation.candidates import list_candidates
from ega_jax.generation.codes import codes_of
from ega_jax.generation.slate_policy import slate_log_probs
from ega_jax.training.state import TrainState, make_train_step

ROWS, STRENGTH, PART = 24, 0.5, "head_and_last_block"
STEPS, RATE = 24, 0.1
OPTIMIZER = optax.sgd(RATE)
REQUESTS = random_requests(3, ROWS)
BATCH = batch_of(REQUESTS)
LEVERS = levers(bid_free=True)


def test_dpo_loss_by_hand():
    ratio = np.array([[0.0, 0.0], [2.0, -1.0], [-40.0, 60.0]], np.float32)
    expected = [np.log(2), np.log(1 + np.exp(-0.5 * 3)), 0.5 * 100]
    loss, grad = jax.value_and_grad(lambda x: dpo_loss(x, 0.5).sum())(ratio)
    np.testing.assert_allclose(dpo_loss(ratio, 0.5), expected, rtol=1e-6)
    np.testing.assert_allclose(loss, sum(expected), rtol=1e-6)
    slope = 0.5 / (1 + np.exp([0.0, 0.5 * 3, -0.5 * 100]))
    np.testing.assert_allclose(grad, np.stack([-slope, slope], axis=1), rtol=1e-5)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def prepared_by(system, request):
    return system.prepare(request, LEVERS)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def with_peri_crs_creatives(system, request):
    """Creatives and click probabilities `[N]` of the candidates, each alone in a slate."""
    history, items = (request.history_poi, request.history_creative), system.items
    creative = peri_cr.choose(system.peri_cr, system.peri_cr_config, items, *history, request.item)
    slate = request.item[:, None], creative[:, None], request.is_ad[:, None]
    return creative, system.predict(system.prepare(request, LEVERS), *slate).click_poi[:, 0]


def test_candidates_show_peri_crs_creatives_and_are_else_egas():
    prepared = prepared_by(tiny_gr(), REQUESTS)
    same = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(same, prepared, prepared_by(tiny_ega(), REQUESTS))
    found = jax.device_get(alone(tiny_gr(), prepared, REQUESTS))
    expected = jax.device_get(with_peri_crs_creatives(tiny_gr(), REQUESTS))
    there = REQUESTS.item >= 0
    jax.tree.map(lambda x, y: same(x[there], y[there]), found, expected)
    first = np.asarray(tiny_ega().items.catalogue.poi_creatives)[REQUESTS.item, 0]
    assert (found[0] != first)[there].any()


def test_it_shows_peri_crs_creatives_and_bids_only_choose_among_what_it_generates():
    _, found, menu = jax.device_get(serve(tiny_gr(), REQUESTS, LEVERS))
    creative, quality = jax.device_get(with_peri_crs_creatives(tiny_gr(), REQUESTS))
    filled = found.candidate >= 0
    of_slate = lambda values: np.take_along_axis(values, np.maximum(found.candidate, 0), axis=1)
    assert filled.any()
    np.testing.assert_array_equal(found.creative, np.where(filled, of_slate(creative), -1))
    expected = np.where(filled, of_slate(quality), 0.0)
    np.testing.assert_allclose(found.quality, expected, atol=1e-6)
    other = np.random.default_rng(0).permuted(REQUESTS.bid, axis=1) * REQUESTS.is_ad
    _, again, same = jax.device_get(serve(tiny_gr(), REQUESTS.replace(bid=other), LEVERS))
    np.testing.assert_array_equal(same.candidate, menu.candidate)
    assert (again.candidate != found.candidate).any(), "the slate of the highest revenue"


def menu_of(slates, value, where):
    """A menu of slates `[S, K]` of candidates, of which nothing else matters."""
    nothing = jnp.zeros(slates.shape)
    return Menu(
        candidate=slates,
        item=slates,
        creative=slates,
        is_ad=slates >= 0,
        bid=nothing,
        reserve=nothing,
        quality=nothing,
        pctr=nothing,
        value=value,
        where=where,
        log_z=nothing,
        states=nothing[..., None],
        rivals=Bidders(*(x.reshape(-1) for x in (slates, nothing, nothing, slates))),
    )


@struct.dataclass
class MadeUp(EGA):
    """Its slate `s` is worth the policy's one parameter times `bid[s]`, if there is a slate."""

    def find_menu(self, prepared, report=None):
        bid = prepared
        value = jnp.where(bid >= 0, self.decoder * bid, -1e30)
        return menu_of(jnp.broadcast_to(jnp.arange(N)[:, None], (N, K)), value, bid >= 0)


def test_the_best_and_the_worst_of_the_current_policys_menu_by_a_loop():
    bid = np.random.default_rng(1).integers(-2, 4, (ROWS, N)).astype(np.float32)
    bid[0], bid[1], bid[:, 3] = -1, 2, 1

    def choose(policy):
        system = MadeUp(**vars(tiny_ega()) | {"decoder": jnp.float32(policy)})
        return jax.device_get(jax.vmap(lambda bid: best_and_worst(system, bid))(bid))

    for policy in (1.0, 0.5):
        pairs, where = choose(policy)
        for b in range(ROWS):
            listed = [value for value in policy * bid[b] if value >= 0]
            assert (pairs[b] == pairs[b, :, :1]).all()
            best, worst = policy * bid[b][pairs[b, :, 0]]
            assert (best, worst) == (max(listed), min(listed))
            assert where[b] == (best > worst)
        assert 0 < where.sum() < ROWS
    opposite, _ = choose(-1.0)
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
    codes = np.asarray(tiny_ega().items.catalogue.poi_codes)[REQUESTS.item]
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
    catalogue = tiny_ega().items.catalogue
    decoder = tiny_ega().decoder.with_parameters(params)

    def both(request, pair):
        memory = decoder.encode(request.history_poi, request.history_creative, catalogue)
        candidates = list_candidates(
            codes_of(catalogue.poi_codes, request.item), request.item, request.is_ad,
            0 * request.bid, request.item >= 0, num_slots=K, num_codes=W,
        )  # fmt: skip
        one = lambda slate: slate_log_probs(decoder, memory, candidates, slate, 1.0, 3.0)
        return jax.vmap(one)(pair).sum((-2, -1))

    found = jax.vmap(both)(REQUESTS, batch["pair"])
    counts = jnp.where(batch["where"], found[:, 0] - found[:, 1], 0.0)
    return counts.sum() / batch["where"].sum(), found


@struct.dataclass
class Preferring(EGA):
    """Each request's menu is a given session and one of less value, or of the same."""

    pair: jax.Array  # [B, 2, K] candidates, by row of `REQUESTS`.
    where: jax.Array  # [B] bool, they differ in value.

    def prepare(self, request, levers):
        """The row of the request, and what the search reads."""
        assert levers is LEVERS
        same = [getattr(REQUESTS, name) == getattr(request, name) for name in ("item", "bid")]
        same.append(REQUESTS.history_poi == request.history_poi)
        row = jnp.argmax(jnp.concatenate(same, axis=1).all(-1))
        return row, EGA.prepare(self, request, levers)

    def find_menu(self, prepared, report=None):
        row, _ = prepared
        value = jnp.array([1.0, 0.0]) * self.where[row]
        return menu_of(self.pair[row], value, jnp.ones(2, bool))

    def path(self, prepared, candidate):
        return EGA.path(self, prepared[1], candidate)


def step(where):
    """One step down the gradient for a fixed preference in the requests `where`."""
    pair = jnp.asarray(sessions()["pair"])
    system = Preferring(**vars(tiny_ega()), pair=pair, where=jnp.asarray(where))
    loss = preference_loss(system, STRENGTH, LEVERS)
    return jax.jit(make_train_step(loss, OPTIMIZER, jax.random.key(0)))


@functools.cache
def trained():
    """States and metrics of a training on one batch."""
    decoder, descend = tiny_ega().decoder, step(sessions()["where"])
    start = TrainState.create(decoder.trainable(PART), OPTIMIZER, decoder.params)
    states, metrics = [start], []
    for _ in range(STEPS):
        state, measured = descend(states[-1], BATCH)
        states.append(state)
        metrics.append(jax.device_get(measured))
    return states, metrics


def test_it_starts_at_log_2_and_leans_towards_what_is_preferred():
    states, metrics = trained()
    assert metrics[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert metrics[0]["preferred"] == metrics[0]["rejected"] == metrics[0]["agreement"] == 0
    _, slope = margin(tiny_ega().decoder.params, sessions())
    expected = tiny_ega().decoder.with_parameters(slope).trainable(PART)
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
    state, metrics = step(np.zeros(ROWS, bool))(states[0], BATCH)
    assert metrics["loss"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, states[0].params)


def test_what_is_preferred_rises_and_what_is_rejected_falls():
    states, metrics = trained()
    joined = tiny_ega().decoder.with_parameters
    before, after = (
        np.asarray(margin(joined(state.params).params, sessions())[0][1])
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
    jax.tree.map(np.testing.assert_array_equal, states[-1].variables, tiny_ega().decoder.params)


def test_sessions_are_those_of_the_current_policy(monkeypatch):
    """Of the parameters of the step: those that train are not the pre-trained ones."""
    seen = []

    def nothing_found(system, prepared):
        assert prepared.levers is LEVERS
        seen.append(system.decoder)
        return jnp.full((2, K), -1), jnp.asarray(False)

    monkeypatch.setattr(gr, "best_and_worst", nothing_found)
    decoder = tiny_ega().decoder
    moved = jax.tree.map(lambda x: x + 1, decoder.trainable(PART))
    few = jax.tree.map(lambda x: x[:2], BATCH)
    preference_loss(tiny_gr(), STRENGTH, LEVERS)(moved, decoder.params, few, jax.random.key(0))
    (current,) = seen
    expected = decoder.with_parameters(moved).params
    jax.tree.map(np.testing.assert_array_equal, current.params, expected)
