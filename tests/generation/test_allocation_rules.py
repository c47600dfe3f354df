"""Each way of bidding for tokens against enumeration, and the rules of a slate under it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from listed import listed
from slates import all_slates, random_request, slate_log_prob
from tiny_generator import CATALOGUE, C, K, T, W, init_params
from tiny_generator import CONFIG as WITH_CREATIVES

from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.generator import Generator, GeneratorDecoder

CONFIG = dataclasses.replace(WITH_CREATIVES, creatives=False)
N = 5
ALL = 60  # 5 * 4 * 3 slates of three items at most.
FEW = 3
CHOICES = [(bid, scope) for scope in ("prefix", "layer") for bid in ("max", "mean")]
each_choice = pytest.mark.parametrize(("token_bid", "scope"), CHOICES)
ALPHA, BETA = 1.2, 0.5
FIELDS = ("codes", "is_ad", "bid", "where", "max_ads", "min_gap")


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG)


@pytest.fixture(scope="module")
def memory(params):
    history = np.array([-1, 3, 1, 2])
    assert history.size == T
    return jax.jit(lambda: GeneratorDecoder(params, CONFIG).encode(history, history, CATALOGUE))()


@dataclasses.dataclass
class AnyBid:
    """Candidates whose tokens bid in a way that is chosen at run time, to compile but once."""

    candidates: tuple
    choice: jax.Array

    root = 0
    widths = (N,) * C

    def options(self, depth, prefix, width):
        options = [c.options(depth, prefix, width) for c in self.candidates]
        bid = jnp.stack([o.bid for o in options])[self.choice]
        return dataclasses.replace(options[0], bid=bid)

    def item(self, prefix):
        return self.candidates[0].item(prefix)

    def ids(self, chosen):
        return self.candidates[0].ids(chosen)


@functools.partial(jax.jit, static_argnames="num_beams")
def search(params, memory, requests, choice, num_beams):
    """Beams of many requests of one user; `requests` are stacked `FIELDS`."""

    def one(codes, is_ad, bid, where, max_ads, min_gap):
        limits = {"max_ads": max_ads, "min_gap": min_gap}
        candidates = AnyBid(
            tuple(
                listed(codes, is_ad, bid, where, K, W, token_bid=b, scope=s, **limits)
                for b, s in CHOICES
            ),
            choice,
        )
        decoder = GeneratorDecoder(params, CONFIG)
        return beam_search(decoder, memory, candidates, num_beams=num_beams, alpha=ALPHA, beta=BETA)

    return jax.vmap(one)(*requests)


@jax.jit
def teacher_forced(params, memory, codes):
    """Logits `[n, K, C, W]` of many slates of one user."""
    one = lambda slate: Generator(CONFIG).apply({"params": params}, memory, slate).poi
    return jax.vmap(one)(codes)


def bid_by_hand(request, items, t, layer, code, token_bid, scope):
    """The bid of a code that could follow at slot `t` of a slate, by its definition."""
    if scope == "layer":
        carriers = [i for i in np.flatnonzero(request.where) if request.codes[i, layer] == code]
    else:
        path = (*request.codes[items[t], :layer], code)
        available = request.available(items[:t])
        carriers = [i for i in available if tuple(request.codes[i, : layer + 1]) == path]
    bids = [float(request.bid[i]) for i in carriers]
    return max(bids) if token_bid == "max" else sum(bids) / len(bids)


def exhaustive(logits_of, request, token_bid, scope):
    """`{items: log-probability}` of every slate of a request."""
    slates = list(all_slates(request, K))
    logits = logits_of([codes for _, codes, _ in slates])
    found = {}
    for n, (items, codes, steps) in enumerate(slates):
        steps = [
            step and {c: bid_by_hand(request, items, i // C, i % C, c, token_bid, scope)
                      for c in step}
            for i, step in enumerate(steps)
        ]  # fmt: skip
        log_prob = slate_log_prob(logits[n], codes, steps, ALPHA, BETA)
        found[tuple(int(i) for i in items)] = log_prob
    return found


@each_choice
def test_all_beams_are_exhaustive_enumeration(params, memory, token_bid, scope):
    rng = np.random.default_rng(CHOICES.index((token_bid, scope)))
    requests = [random_request(rng, N, C, W) for _ in range(60)]
    stacked = tuple(np.stack([getattr(r, name) for r in requests]) for name in FIELDS)
    beams = jax.device_get(search(params, memory, stacked, CHOICES.index((token_bid, scope)), ALL))

    def logits_of(codes):
        padded = np.zeros((ALL, K, C), np.int32)
        padded[: len(codes)] = codes
        return np.asarray(teacher_forced(params, memory, padded), np.float64)

    for r, request in enumerate(requests):
        expected = exhaustive(logits_of, request, token_bid, scope)
        live = beams.where[r]
        items = [tuple(slate) for slate in beams.items[r, live].tolist()]
        found = dict(zip(items, beams.log_prob[r, live], strict=True))
        assert found.keys() == expected.keys()
        np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), atol=5e-4)
        np.testing.assert_allclose(expected[items[0]], max(expected.values()), atol=5e-4)


def test_the_choices_differ(params, memory):
    rng = np.random.default_rng(9)
    requests = [random_request(rng, N, C, W) for _ in range(60)]
    stacked = tuple(np.stack([getattr(r, name) for r in requests]) for name in FIELDS)
    log_probs = [search(params, memory, stacked, n, ALL).log_prob for n in range(len(CHOICES))]
    for i in range(4):
        for j in range(i):
            assert np.abs(log_probs[i] - log_probs[j]).max() > 1e-2


@pytest.mark.parametrize("choice", range(len(CHOICES)))
def test_nothing_invalid_over_100_000_requests(params, memory, choice):
    """25,000 requests for each choice."""
    size = 5_000
    rng = np.random.default_rng(choice + 10)
    for _ in range(5):
        is_ad = rng.random((size, N)) < rng.random((size, 1))
        requests = (
            rng.integers(0, W, (size, N, C)).astype(np.int32),
            is_ad,
            np.where(is_ad, rng.lognormal(sigma=2, size=(size, N)), 0).astype(np.float32),
            rng.random((size, N)) < 0.8,
            rng.integers(0, 4, size),
            rng.integers(0, 3, size),
        )
        beams = jax.device_get(search(params, memory, requests, choice, FEW))
        _, is_ad, _, *rules = requests
        assert_rules(beams.items, beams.where, is_ad, *rules)


def assert_rules(items, live, is_ad, where, max_ads, min_gap):
    """The rules of a slate over `items [R, S, K]`, slot by slot."""
    r, s = np.indices(live.shape)
    used = np.zeros((*live.shape, N), bool)
    organic, ads = np.zeros_like(live, int), np.zeros_like(live, int)
    since_ad = np.full_like(organic, K)
    rank = np.cumsum(where & ~is_ad, axis=1) - 1
    ended = np.zeros_like(live)
    for t in range(K):
        item = items[..., t]
        filled = (item >= 0) & live
        ad = filled & is_ad[r, item]
        assert not (filled & ended).any(), "an item after an empty slot"
        assert where[r, item][filled].all(), "an unavailable item"
        assert not used[r, s, item][filled].any(), "an item twice"
        assert (rank[r, item] == organic)[filled & ~ad].all(), "upstream order"
        assert (ads < max_ads[:, None])[ad].all(), "too many ads"
        assert (since_ad >= min_gap[:, None])[ad].all(), "two ads too close"
        none_left = organic == (where & ~is_ad).sum(1)[:, None]
        assert none_left[live & ~filled].all(), "empty though an organic item is left"
        ended |= ~filled
        used[r, s, item] |= filled
        organic, ads = organic + (filled & ~ad), ads + ad
        since_ad = np.where(ad, 0, since_ad + filled)
