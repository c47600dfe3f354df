"""The policy along given slates: the search's own probabilities, their gradient, the KL."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from listed import listed
from slates import random_request
from tiny_generator import CATALOGUE, C, K, W, init_params
from tiny_generator import CONFIG as WITH_CREATIVES

from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.generator import GeneratorDecoder
from ega_jax.generation.slate_policy import (
    Path,
    kl_to,
    path_log_probs,
    slate_log_probs,
    slate_path,
    taken,
)
from ega_jax.generation.slate_space import Options

CONFIG = dataclasses.replace(WITH_CREATIVES, creatives=False)
N, ALL = 5, 60  # 5 * 4 * 3 slates of three items at most.
ALPHA, BETA = 1.2, 0.5
CODES = np.array([[0, 1], [0, 1], [0, 2], [3, 1], [4, 4]], np.int32)
IS_AD = np.array([True, True, False, True, False])
SLATES = [[1, 2, 4], [3, 1, -1], [-1, -1, -1]]
BID = np.array([1.0, 3.0, 0.0, 0.5, 0.0], np.float32)


@pytest.fixture(scope="module")
def decoder():
    return GeneratorDecoder(init_params(CONFIG), CONFIG)


@pytest.fixture(scope="module")
def memory(decoder):
    history = np.array([-1, 3, 1, 2])
    return jax.jit(lambda: decoder.encode(history, history, CATALOGUE))()


def of_slates(decoder, memory, candidates, items):
    """`[S, K, C]` log z of many slates."""
    one = lambda slate: slate_log_probs(decoder, memory, candidates, slate, ALPHA, BETA)
    return jax.vmap(one)(items)


OF_SLATES = jax.jit(of_slates)


@functools.partial(jax.jit, static_argnames=("token_bid", "scope"))
def searched(decoder, memory, request, token_bid, scope):
    """All slates of many requests, and what the policy says of each."""

    def one(codes, is_ad, bid, where, max_ads, min_gap):
        candidates = listed(
            codes, is_ad, bid, where, K, W,
            max_ads=max_ads, min_gap=min_gap, token_bid=token_bid, scope=scope,
        )  # fmt: skip
        beams = beam_search(decoder, memory, candidates, num_beams=ALL, alpha=ALPHA, beta=BETA)
        return beams, of_slates(decoder, memory, candidates, beams.items)

    return jax.vmap(one)(*request)


@pytest.mark.parametrize(("token_bid", "scope"), [("max", "prefix"), ("mean", "prefix")])
def test_log_z_is_that_of_the_search(decoder, memory, token_bid, scope):
    rng = np.random.default_rng(0)
    requests = [random_request(rng, N, C, W) for _ in range(60)]
    names = ("codes", "is_ad", "bid", "where", "max_ads", "min_gap")
    stacked = tuple(np.stack([getattr(r, name) for r in requests]) for name in names)
    beams, log_z = jax.device_get(searched(decoder, memory, stacked, token_bid, scope))
    live = beams.where
    assert live.sum() > 200
    assert (beams.items[live] < 0).any(), "some slates end early"
    np.testing.assert_allclose(log_z[live], beams.log_z[live], atol=5e-4)


@pytest.fixture(scope="module")
def candidates():
    return jax.jit(lambda: listed(CODES, IS_AD, BID, np.ones(N, bool), K, W))()


@pytest.mark.parametrize("slate", [[4, 0, -1], [3, 0, 3], [2, 4, 2]])
def test_what_the_rules_forbid_is_impossible(decoder, memory, candidates, slate):
    """An organic item before its turn, an ad twice, an organic item twice."""
    log_z = OF_SLATES(decoder, memory, candidates, jnp.array([slate, *SLATES]))[0]
    assert np.isfinite(log_z).all()
    assert log_z.sum() < -1e29


def test_what_is_on_offer_first_in_each_slot(candidates):
    """Codes 0, 3 compete first, with bids 3 and .5; code 4 only after item 2 is shown."""
    path = jax.jit(slate_path)(candidates, jnp.array(SLATES[0]))
    first = path.options[0]
    where, code, bid = (np.asarray(x) for x in (first.where, first.code, first.bid))
    on_offer = [dict(zip(code[t, w], bid[t, w], strict=True)) for t, w in enumerate(where)]
    assert on_offer == [{0: 3.0, 3: 0.5}, {0: 1.0, 3: 0.5}, {0: 1.0, 3: 0.5, 4: 0.0}]
    np.testing.assert_array_equal(path.codes, CODES[[1, 2, 4]])


def test_the_expected_gradient_of_log_probabilities_is_zero(decoder, memory, candidates):
    """`sum p grad log p = grad sum p = 0` over all slates: nothing of the gradient is missing."""

    @jax.jit
    def gradient(decoder, only):
        """Gradients of log p, expected over all slates and of one of them; the sum of all p."""
        beams = beam_search(decoder, memory, candidates, num_beams=ALL, alpha=ALPHA, beta=BETA)
        log_prob, pull = jax.vjp(
            lambda d: of_slates(d, memory, candidates, beams.items).sum((1, 2)), decoder
        )
        probability = jnp.where(beams.where, jnp.exp(log_prob), 0.0)
        return pull(probability), pull(only), probability.sum()

    expected, single, total = gradient(decoder, jnp.eye(ALL)[0])
    expected, single = jax.tree.leaves(expected), jax.tree.leaves(single)
    np.testing.assert_allclose(total, 1.0, atol=1e-4)
    assert all(np.isfinite(g).all() for g in [*expected, *single])
    largest = max(np.abs(g).max() for g in single)
    assert largest > 1e-2
    assert max(np.abs(g).max() for g in expected) < 1e-3 * largest


def test_leading_axes_are_slates(decoder, memory, candidates):
    items = jnp.array([SLATES[0], *SLATES])

    @jax.jit
    def at_once(decoder):
        paths = jax.vmap(slate_path, in_axes=(None, 0))(candidates, items)
        return taken(path_log_probs(decoder, memory, paths, ALPHA, BETA), paths)

    log_z = OF_SLATES(decoder, memory, candidates, items)
    np.testing.assert_allclose(at_once(decoder), log_z, atol=1e-4)
    assert (log_z[3] == 0).all()
    assert (log_z[2, 2] == 0).all()
    assert (log_z[2, :2].sum(-1) < 0).all()


def random_policies(rng, shape):
    """Two distributions over what is on offer, as log-probabilities, and what is on offer."""
    where = rng.random(shape) < 0.6
    where[..., 0, 0, :] = False
    scores = np.where(where, rng.normal(size=(2, *shape)), -1e30)
    total = np.log(np.exp(scores).sum(-1, keepdims=True), where=where.any(-1, keepdims=True),
                   out=np.zeros((2, *shape[:-1], 1)))  # fmt: skip
    return *np.where(where, scores - total, -1e30).astype(np.float32), where


def as_path(where):
    """A path with given valid options `[B, K, C, N]`, and log-probabilities by layer."""
    empty = np.zeros(where.shape)
    options = [Options(*(empty[:, :, c] for _ in range(3)), where[:, :, c]) for c in range(C)]
    return Path(codes=None, where=where.any((-2, -1)), options=tuple(options))


def by_layer(log_probs):
    return tuple(log_probs[:, :, c] for c in range(C))


def test_kl_by_hand():
    rng = np.random.default_rng(1)
    p, q, where = random_policies(rng, (4, K, C, N))
    expected = np.zeros(4)
    for b, *step in np.argwhere(where):
        at = (b, *step)
        expected[b] += np.exp(np.float64(p[at])) * (np.float64(p[at]) - q[at])
    found = kl_to(by_layer(q), by_layer(p), as_path(where))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (expected > 0.1).all()
    nothing = kl_to(by_layer(p), by_layer(p), as_path(where))
    np.testing.assert_array_equal(nothing, np.zeros(4))


def test_kl_moves_the_policy_and_not_its_reference():
    p, q, where = random_policies(np.random.default_rng(2), (1, K, C, N))
    of_reference, of_policy = jax.grad(
        lambda reference, policy: kl_to(
            by_layer(reference), by_layer(policy), as_path(where)
        ).sum(),
        argnums=(0, 1),
    )(q, p)
    assert (np.asarray(of_reference) == 0).all()
    assert np.isfinite(of_policy).all()
    assert (np.asarray(of_policy)[where] != 0).any()
    assert (np.asarray(of_policy)[~where] == 0).all()
