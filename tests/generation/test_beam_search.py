"""The search against exhaustive enumeration, and what it must never do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listed import listed
from slates import all_slates, random_request, slate_log_prob

from ega_jax.generation import generator
from ega_jax.generation.beam_search import GROWTH, beam_search
from ega_jax.generation.codes import codes_of
from ega_jax.generation.generator import Generator, GeneratorConfig, GeneratorDecoder
from ega_jax.types import Catalogue

N, W, C, K = 5, 3, 2, 3
ALL = 90  # beams; 5 * 4 * 3 slates at most, and the partial ones on the way.
FEW = 8
CONFIG = GeneratorConfig(
    num_codes=W, num_layers=C, num_slots=K, history_length=4, width=16, num_heads=2, hidden=16,
    encoder_blocks=1, decoder_blocks=2, creatives=False,
)  # fmt: skip
CATALOGUE = Catalogue(
    poi_codes=jnp.asarray(np.random.default_rng(0).integers(0, W, (9, C)), jnp.int32),
    creative_codes=jnp.zeros((0, C), jnp.int32),
    poi_creatives=jnp.zeros((9, 0), jnp.int32),
)


def sharp(params, scale=4.0):
    """Larger weights than at initialisation, so that slates differ in probability."""
    return jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, params)


@pytest.fixture(scope="module")
def params():
    return sharp(jax.jit(lambda key: generator.init(key, CONFIG, CATALOGUE))(jax.random.key(0)))


@jax.jit
def encode(params, history):
    model = Generator(CONFIG)
    return model.apply({"params": params}, history, history, CATALOGUE, method="encode")


@jax.jit
def teacher_forced(params, memory, codes):
    """Logits `[n, K, C, W]` of many slates of one request by the full pass."""
    model = Generator(CONFIG)
    one = lambda slate: model.apply({"params": params}, memory, slate).poi
    return jax.vmap(one)(codes)


@functools.partial(jax.jit, static_argnames=("num_beams", "num_slots"))
def search(params, memory, codes, is_ad, bid, where, max_ads, min_gap, alpha, beta, num_beams,
           num_slots=None):  # fmt: skip
    candidates = listed(codes, is_ad, bid, where, K, W, max_ads=max_ads, min_gap=min_gap)
    return beam_search(
        GeneratorDecoder(params, CONFIG), memory, candidates,
        num_beams=num_beams, num_slots=num_slots, alpha=alpha, beta=beta,
    )  # fmt: skip


def search_request(params, memory, request, alpha=1.2, beta=2.0, num_beams=ALL):
    return search(
        params, memory, request.codes, request.is_ad, request.bid, request.where,
        request.max_ads, request.min_gap, alpha, beta, num_beams,
    )  # fmt: skip


def exhaustive(params, memory, request, alpha=1.2, beta=2.0):
    """`{items: log-probability}` of every slate."""
    slates = list(all_slates(request, K))
    codes = np.zeros((ALL, K, C), np.int32)
    codes[: len(slates)] = [codes for _, codes, _ in slates]
    logits = np.asarray(teacher_forced(params, memory, codes), np.float64)
    return {
        tuple(int(i) for i in items): slate_log_prob(logits[n], codes, steps, alpha, beta)
        for n, (items, codes, steps) in enumerate(slates)
    }


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_all_beams_are_exhaustive_enumeration(params, seed):
    rng = np.random.default_rng(seed)
    request = random_request(rng, N, C, W)
    memory = encode(params, rng.integers(-1, 9, 4))
    expected = exhaustive(params, memory, request)
    beams = jax.device_get(search_request(params, memory, request))
    found = {
        tuple(items.tolist()): log_prob
        for items, log_prob, where in zip(beams.items, beams.log_prob, beams.where, strict=True)
        if where
    }
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), atol=2e-4)
    assert np.all(np.diff(beams.log_prob) <= 0), "slates come best first"
    np.testing.assert_allclose(beams.log_z.sum((1, 2))[beams.where], beams.log_prob[beams.where],
                               atol=1e-4)  # fmt: skip
    dead = ~np.asarray(beams.where)
    assert (beams.items[dead] == -1).all(), "what is no slate holds nothing"
    assert not np.any(beams.codes[dead])
    assert not np.any(beams.log_z[dead])
    probability = np.exp([found[k] for k in expected]).sum()
    np.testing.assert_allclose(probability, 1.0, atol=1e-3)


def test_equal_scores_are_broken_by_place(params):
    """With all logits equal several slates tie: that of the codes and rows that come first wins."""
    flat = jax.tree.map(jnp.zeros_like, params)
    codes = np.array([[2, 0], [0, 0], [1, 0], [1, 1], [0, 1]], np.int32)
    ones = np.ones(N, bool)
    memory = encode(flat, np.full(4, -1))
    run = lambda n: search(flat, memory, codes, ones, ones * 1.0, ones, N, 0, 1.0, 1.0, n)
    first, again = run(ALL), run(ALL)
    np.testing.assert_array_equal(first.items, again.items)
    tied = first.items[first.log_prob == first.log_prob[0]]
    assert tied.tolist() == [[0, 1, 4], [0, 4, 1], [0, 2, 3], [0, 3, 2]]
    np.testing.assert_array_equal(run(FEW).log_prob[0], first.log_prob[0])


def test_states_and_log_z_are_those_of_the_full_pass(params):
    """Cached decoding equals the full forward pass, whatever the beams' genealogy."""
    rng = np.random.default_rng(5)
    request = random_request(rng, N, C, W)
    request = type(request)(
        request.codes, np.ones(N, bool), request.bid, np.ones(N, bool), max_ads=N, min_gap=0
    )
    memory = encode(params, rng.integers(0, 9, 4))
    beams = search_request(params, memory, request, num_beams=FEW)
    model = Generator(CONFIG)
    full_pass = jax.jit(
        lambda codes: model.apply({"params": params}, memory, codes, method="poi_states")
    )
    assert beams.where.all()
    for s in range(FEW):
        states = full_pass(beams.codes[s])
        np.testing.assert_allclose(beams.states[s], states[:, -1], atol=2e-4)


def test_long_slates_are_those_of_the_full_pass():
    """Caches that have grown more than once hold what they held before."""
    items = GROWTH + 6
    config = dataclasses.replace(CONFIG, num_slots=GROWTH + 2, decoder_blocks=1)
    rng = np.random.default_rng(6)
    codes = jnp.asarray(rng.integers(0, W, (items, C)), jnp.int32)
    ads = jnp.ones(items, bool)

    @jax.jit
    def run(key):
        params = sharp(generator.init(key, config, CATALOGUE))
        model = Generator(config).bind({"params": params})
        history = jnp.array([0, 3, -1, 2])
        memory = model.encode(history, history, CATALOGUE)
        candidates = listed(codes, ads, ads * 1.0, ads, config.num_slots, W)
        beams = beam_search(GeneratorDecoder(params, config), memory, candidates, num_beams=FEW)
        return beams, jax.vmap(functools.partial(model.poi_states, memory))(beams.codes)

    beams, states = run(jax.random.key(3))
    assert beams.where.all()
    assert len({tuple(slate) for slate in beams.items.tolist()}) == FEW
    np.testing.assert_allclose(beams.states, states[:, :, -1], atol=2e-4)


def test_nothing_invalid_over_100_000_requests(params):
    """No item twice, none unavailable, organic order and limits kept, no slot empty in vain."""
    n, size = 100_000, 5_000
    memory = encode(params, np.array([-1, 3, 1, 2]))
    run = jax.jit(
        jax.vmap(
            functools.partial(search, params, memory, num_beams=3),
            in_axes=(0, 0, 0, 0, 0, 0, None, None),
        )
    )
    rng = np.random.default_rng(11)
    for _ in range(n // size):
        codes = rng.integers(0, W, (size, N, C)).astype(np.int32)
        is_ad = rng.random((size, N)) < rng.random((size, 1))
        bid = np.where(is_ad, rng.lognormal(size=(size, N)), 0).astype(np.float32)
        where = rng.random((size, N)) < 0.8
        max_ads, min_gap = rng.integers(0, 4, size), rng.integers(0, 3, size)
        beams = run(codes, is_ad, bid, where, max_ads, min_gap, 1.2, 2.0)
        assert_valid(np.asarray(beams.items), np.asarray(beams.where), is_ad, where, max_ads,
                     min_gap)  # fmt: skip


def assert_valid(items, live, is_ad, where, max_ads, min_gap):
    """Vectorised rules of a slate over `items [R, S, K]`."""
    r = np.arange(len(items))[:, None, None]
    filled = items >= 0
    assert where[r, items][filled & live[..., None]].all(), "an unavailable item"
    for i in range(K):
        for j in range(i):
            same = filled[..., i] & (items[..., i] == items[..., j])
            assert not (same & live).any(), "an item twice"
    ad = filled & is_ad[r, items]
    organic = filled & ~ad
    rank = np.cumsum(where & ~is_ad, axis=1) - 1
    turn = np.where(organic, rank[r, items], 0)
    assert np.array_equal(turn[organic], (np.cumsum(organic, -1) - 1)[organic]), "upstream order"
    assert (ad.sum(-1) <= max_ads[:, None])[live].all(), "too many ads"
    for i in range(K):
        for j in range(i):
            between = organic[..., j + 1 : i].sum(-1) >= min_gap[:, None]
            adjacent = ad[..., i] & ad[..., j] & ~ad[..., j + 1 : i].any(-1)
            assert between[adjacent & live].all(), "two ads too close"
    left = (where & ~is_ad).sum(1)[:, None] - organic.sum(-1)
    empty = ~filled[..., -1] & live
    assert (left[empty] == 0).all(), "a slot is empty though an organic item is left"


def test_a_shared_code_stands_for_its_highest_bidder(params):
    codes = np.zeros((N, C), np.int32)
    ads = np.ones(N, bool)
    bid = np.array([1, 5, 3, 0, 4], np.float32)
    memory = encode(params, np.full(4, -1))
    beams = search(params, memory, codes, ads, bid, ads, N, 0, 1.2, 2.0, FEW)
    assert beams.items[0].tolist() == [1, 4, 2]
    np.testing.assert_array_equal(beams.where, np.arange(FEW) == 0)


def test_pmap(params):
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices")
    rng = np.random.default_rng(4)
    codes = rng.integers(0, W, (4, N, C)).astype(np.int32)
    ones = np.ones((4, N))
    memory = encode(params, np.array([0, 3, 1, 2]))
    one = lambda c, a, b: search(params, memory, c, a, b, a, N, 0, 1.2, 2.0, 4).log_prob
    together = jax.pmap(one)(codes, ones > 0, ones)
    alone = [one(c, ones[0] > 0, ones[0]) for c in codes]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_codes_of_no_item_are_harmless():
    found = codes_of(CATALOGUE.poi_codes, jnp.array([-1]))
    np.testing.assert_array_equal(found, CATALOGUE.poi_codes[:1])
