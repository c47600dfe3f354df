"""The policy gradient by hand, what trains, and that it pays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_generator import CATALOGUE, C, K, P, T, W, init_params
from tiny_generator import CONFIG as WITH_CREATIVES

from ega_jax.auction.alignment import (
    AlignmentConfig,
    alignment_loss,
    policy_loss,
    scaled,
)
from ega_jax.auction.contributions import marginal_contributions
from ega_jax.auction.credit import Credits
from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.candidates import list_candidates
from ega_jax.generation.codes import codes_of
from ega_jax.generation.generator import GeneratorDecoder
from ega_jax.generation.slate_policy import slate_log_probs, slate_path
from ega_jax.training.state import TrainState, make_train_step

CONFIG = dataclasses.replace(WITH_CREATIVES, creatives=False)
B, N, ALL = 8, 4, 24  # Requests, candidates, slates of three of these at most.
ALIGNMENT = AlignmentConfig(alpha=0.8, beta=1.0)
LAST = f"decoder_{CONFIG.decoder_blocks - 1}"


def test_scaled_credits_have_a_mean_square_of_1_and_keep_their_signs():
    rng = np.random.default_rng(0)
    where = rng.random((B, K)) < 0.6
    r = np.where(where, rng.normal(2.0, 1.0, (B, K)), np.nan).astype(np.float32)
    found = np.asarray(scaled(r, where))
    np.testing.assert_allclose(found[where], r[where] / np.sqrt((r[where] ** 2).mean()), rtol=1e-5)
    assert (found[~where] == 0).all()
    for factor in (1e-30, 1e30):
        np.testing.assert_allclose(scaled(np.float32(factor) * r, where), found, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_credits_of_0_stay_0(share):
    where = np.random.default_rng(1).random((40, K)) < share
    assert (np.asarray(scaled(jnp.zeros((40, K)), where)) == 0).all()


def test_a_winner_is_not_pushed_away_because_another_request_is_worth_more():
    """Two requests of one slot, worth 10 and .5: 200 steps make both winners likelier."""
    where, credit = np.ones((2, 1), bool), np.array([[10.0], [0.5]])

    @jax.jit
    def step(logits):
        loss = lambda x: policy_loss(
            jax.nn.log_softmax(x)[:, None, :1], scaled(credit, where), where
        ).sum()
        return logits - 0.5 * jax.grad(loss)(logits)

    logits = jnp.zeros((2, 3))
    for _ in range(200):
        logits = step(logits)
    winner = jax.nn.softmax(logits)[:, 0]
    assert winner[0] > 0.9
    assert winner[1] > 0.5


def test_policy_loss_by_hand():
    rng = np.random.default_rng(0)
    log_z, r = -rng.random((2, K, C)).astype(np.float32), rng.normal(size=(2, K))
    where = np.array([[True, True, False], [True, False, False]])
    expected = np.zeros(2)
    for b, k in np.argwhere(where):
        expected[b] -= r[b, k] * log_z[b, k].sum()
    np.testing.assert_allclose(policy_loss(log_z, r, where), expected, rtol=1e-5)
    of_log_z, of_r = jax.grad(lambda *x: policy_loss(*x, where).sum(), (0, 1))(log_z, r)
    np.testing.assert_allclose(of_log_z, -np.where(where, r, 0)[..., None] * np.ones(C), rtol=1e-6)
    assert (np.asarray(of_r) == 0).all()


@pytest.fixture(scope="module")
def decoder():
    params = jax.tree.map(lambda x: x / 2 if x.ndim > 1 else x, init_params(CONFIG))
    return GeneratorDecoder(params, CONFIG)


def test_the_heads_and_the_last_block_are_trained_and_the_rest_stays(decoder):
    trained = decoder.trainable("head_and_last_block")
    assert trained.keys() == {"poi", LAST}
    assert trained["poi"].keys() == {"head", "norm"}
    assert jax.tree.structure(trained[LAST]) == jax.tree.structure(decoder.params[LAST])
    assert_same(decoder.with_parameters(trained).params, decoder.params)
    moved_on = jax.tree.map(lambda x: x + 1, trained)
    joined = decoder.with_parameters(moved_on)
    assert joined.config == decoder.config
    rest = {name: x for name, x in decoder.params.items() if name not in ("poi", LAST)}
    table = {"table": decoder.params["poi"]["table"]}
    assert_same(joined.params, {**rest, "poi": moved_on["poi"] | table, LAST: moved_on[LAST]})


def test_all_parameters_are_trained(decoder):
    trained = decoder.trainable("all")
    assert_same(trained, decoder.params)
    moved_on = jax.tree.map(lambda x: x + 1, trained)
    assert_same(decoder.with_parameters(moved_on).params, moved_on)


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert all(a is b for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


def test_an_unknown_part_is_refused(decoder):
    with pytest.raises(ValueError, match="'heads' is not one of head_and_last_block, all"):
        decoder.trainable("heads")


def market(seed=0):
    """Requests whose ads differ in value, and the click probability of each candidate."""
    rng = np.random.default_rng(seed)
    item = np.stack([rng.permutation(P)[:N] for _ in range(B)]).astype(np.int32)
    is_ad = np.arange(N) < 3
    history = rng.integers(-1, P, (2, B, T)).astype(np.int32)
    return {
        "history_poi": history[0],
        "history_creative": history[1],
        "item": item,
        "is_ad": np.broadcast_to(is_ad, (B, N)),
        "bid": np.where(is_ad, rng.lognormal(size=(B, N)), 0).astype(np.float32),
        "pctr": rng.uniform(0.02, 0.5, (B, N)).astype(np.float32),
    }


def candidates_of(request):
    item = request["item"]
    return list_candidates(
        codes_of(CATALOGUE.poi_codes, item), item, request["is_ad"], request["bid"], item >= 0,
        num_slots=K, num_codes=W, max_ads=2,
    )  # fmt: skip


def candidates_and_memory(decoder, request):
    memory = decoder.encode(request["history_poi"], request["history_creative"], CATALOGUE)
    return candidates_of(request), memory


@functools.partial(jax.vmap, in_axes=(None, 0))
def judge(decoder, request):
    """The best slate, what its items add, and the policy's expected value, all slates listed.

    The reward model is a table that knows the slot.
    """
    candidates, memory = candidates_and_memory(decoder, request)
    beams = beam_search(
        decoder, memory, candidates,
        num_beams=ALL, alpha=ALIGNMENT.alpha, beta=ALIGNMENT.beta,
    )  # fmt: skip
    pctr = request["pctr"][beams.items] * (1.0 - 0.3 * jnp.arange(K))
    bid = jnp.where(beams.items >= 0, request["bid"][beams.items], 0.0)
    values = jnp.sum(bid * pctr, axis=-1)
    chosen = jnp.argmax(jnp.where(beams.where, values, -jnp.inf))
    contribution, _ = marginal_contributions(values, beams.items, beams.where, chosen)
    probability = jnp.where(beams.where, jnp.exp(beams.log_prob), 0.0)
    return beams.items[chosen], contribution, jnp.sum(probability * values)


def choose(decoder, batch, key):
    del key
    items, contribution, value = judge(decoder, batch)
    path = lambda request, items: slate_path(candidates_of(request), items)
    paths = jax.vmap(path)(batch, items)
    one = lambda x: x[:, None]  # One slate a request.
    return Credits(jax.tree.map(one, paths), one(contribution), one(value))


JUDGE = jax.jit(judge)


def train(decoder, part, kl_weight, batch, steps=1):
    """Aligns for some steps; returns the states and metrics before and after each."""
    settings = dataclasses.replace(ALIGNMENT, kl_weight=kl_weight, part=part)
    loss = alignment_loss(decoder, settings, CATALOGUE, choose)
    optimizer = optax.adam(1e-2)
    step = jax.jit(make_train_step(loss, optimizer, jax.random.key(0)))
    state = TrainState.create(decoder.trainable(part), optimizer, decoder.params)
    states, metrics = [state], []
    for _ in range(steps):
        state, measured = step(state, batch)
        states.append(state)
        metrics.append(jax.device_get(measured))
    return states, metrics


@pytest.fixture(scope="module")
def aligned(decoder):
    return train(decoder, "head_and_last_block", 0.1, market(), steps=40)


def test_loss_by_hand(decoder, aligned):
    batch = market()
    items, contribution, value = JUDGE(decoder, batch)
    weights = scaled(contribution, items >= 0)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def log_z(decoder, request, items):
        candidates, memory = candidates_and_memory(decoder, request)
        return slate_log_probs(decoder, memory, candidates, items, ALIGNMENT.alpha, ALIGNMENT.beta)

    z = np.asarray(log_z(decoder, batch, items))
    expected = -sum(weights[b, k] * z[b, k].sum() for b in range(B) for k in range(K)) / B
    first = aligned[1][0]
    np.testing.assert_allclose(first["policy_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(first["slate_log_prob"], z.sum((1, 2)).mean(), rtol=1e-4)
    np.testing.assert_allclose(first["value"], value.mean(), rtol=1e-5)
    np.testing.assert_allclose(first["kl"], 0.0, atol=1e-6)
    np.testing.assert_allclose(first["loss"], first["policy_loss"], rtol=1e-5)


def test_aligning_raises_the_value_of_the_policy(decoder, aligned):
    states, metrics = aligned
    before, after = (
        JUDGE(decoder.with_parameters(state.params), market())[2].mean()
        for state in (states[0], states[-1])
    )
    assert after > 1.05 * before
    kl = np.array([m["kl"] for m in metrics])
    assert (kl > -1e-6).all()
    assert kl[-1] > 0.01
    total = [m["policy_loss"] + 0.1 * m["kl"] for m in metrics]
    np.testing.assert_allclose([m["loss"] for m in metrics], total, rtol=1e-4)


def moved(before, after):
    return jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), before, after)


def test_the_whole_part_trains_and_the_rest_stays(decoder, aligned):
    states, _ = aligned
    assert all(jax.tree.leaves(moved(states[0].params, states[1].params)))
    assert not any(jax.tree.leaves(moved(decoder.params, states[-1].variables)))


def test_all_parameters_may_train_and_a_penalty_keeps_them_near(decoder, aligned):
    states, metrics = train(decoder, "all", 30.0, market(), steps=40)
    assert all(jax.tree.leaves(moved(states[0].params["encoder_0"], states[1].params["encoder_0"])))
    assert np.isfinite([m["grad_norm"] for m in metrics]).all()
    assert 1e-4 < metrics[-1]["kl"] < 0.5 * aligned[1][-1]["kl"]
