"""Searches in ad books against the oracle that looks at every item of a request's list."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from request_search import request_candidates
from slates import RepeatingRequest, all_slates, random_request, slate_log_prob
from toy_decoder import random_decoder

from ega_jax.generation import beam_search as beam_module
from ega_jax.generation import joint_search as joint_module
from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.candidates import list_candidates
from ega_jax.generation.joint_search import joint_search
from ega_jax.generation.reports import ABSENT, Report
from ega_jax.types import IMPOSSIBLE

K, C, W, N, S = 3, 3, 3, 10, 6
REQUESTS = 600
CHOICES = [(bid, scope) for scope in ("prefix", "layer") for bid in ("max", "mean")]
each_choice = pytest.mark.parametrize(("token_bid", "scope"), CHOICES)
MEMORY = jnp.array([1.0, -1.0, 0.0, 2.0])


def requests(seed, size=REQUESTS):
    """Uneven branching, full leaves, equal bids, missing items, reserves and limits."""
    rng = np.random.default_rng(seed)
    skew = np.stack([rng.dirichlet(np.full(W, 0.5)) for _ in range(size)])
    codes = (rng.random((size, N, C, 1)) > np.cumsum(skew, -1)[:, None, None]).sum(-1)
    is_ad = rng.random((size, N)) < rng.random((size, 1))
    return {
        "codes": np.minimum(codes, W - 1).astype(np.int32),
        "item": np.argsort(rng.random((size, N)), axis=1).astype(np.int32),
        "is_ad": is_ad,
        "bid": np.where(is_ad, rng.choice([0.0, 1.0, 2.0, 3.0], (size, N)), 0).astype(np.float32),
        "where": rng.random((size, N)) < rng.choice([0.1, 0.6, 1.0], (size, 1)),
        "reserve": rng.choice([0.0, 0.0, 2.0], size).astype(np.float32),
        "max_ads": rng.choice([1, 2, N], size).astype(np.int32),
        "min_gap": rng.choice([0, 0, 1, 2], size).astype(np.int32),
        "search_bid": rng.choice([0.3, 1.7], (size, N)).astype(np.float32),
        "smoothing": rng.choice([0.0, 0.0, 0.5, 1.0], size).astype(np.float32),
    }


def reports(seed, size=REQUESTS):
    """Ads that report another bid or are absent, and reports that change nothing."""
    rng = np.random.default_rng(seed + 1000)
    bid = rng.choice([ABSENT, 0.0, 1.0, 1.5, 2.0, 3.0, 9.0], size)
    return rng.integers(-1, N, size).astype(np.int32), bid.astype(np.float32)


def by_oracle(request, ad, bid, token_bid, scope):
    """The candidates under a report, by a changed copy of the list."""
    own = (jnp.arange(N) == ad) & request["is_ad"]
    bids = jnp.where(own, jnp.maximum(bid, 0.0), request["bid"])
    where = request["where"] & ~(own & (bid < 0))
    where &= ~request["is_ad"] | (bids >= request["reserve"])
    past, weight = request["search_bid"], request["smoothing"]
    seen = jnp.where(weight == 1, past, jnp.where(weight == 0, bids, jnp.sqrt(bids * past)))
    return request_candidates(
        request["codes"], request["is_ad"], seen, where,
        max_ads=request["max_ads"], min_gap=request["min_gap"], token_bid=token_bid, scope=scope,
    )  # fmt: skip


def in_book(request, token_bid, scope):
    return list_candidates(**request, num_slots=K, num_codes=W, token_bid=token_bid, scope=scope)


@functools.partial(jax.jit, static_argnames=("token_bid", "scope"))
def both(decoder, stacked, ads, bids, token_bid, scope):
    """Pairs of beams: the oracle's and a book's, of single and joint searches, with reports."""
    settings = {"num_beams": S, "alpha": 1.2, "beta": 0.5}

    def one(request, ad, bid):
        # A report of an item that is no ad, or is not there, changes nothing.
        is_ad = request["is_ad"][ad] & request["where"][ad] & (ad >= 0)
        ad = jnp.where(is_ad, ad, -1)
        oracle = lambda ad: beam_search(
            decoder, MEMORY, by_oracle(request, ad, bid, token_bid, scope), **settings
        )
        book = in_book(request, token_bid, scope)
        alone = beam_search(decoder, MEMORY, book.reporting(Report(ad, bid)), **settings)
        nobody = jnp.int32(-1)
        variants = Report(jnp.stack([nobody, ad, nobody]), jnp.stack([bid, bid, bid]))
        together = joint_search(decoder, MEMORY, book, variants, **settings)
        without, reported = (jax.tree.map(lambda x, i=i: x[i], together) for i in (0, 1))
        expected = oracle(ad)
        return (expected, alone), (expected, reported), (oracle(nobody), without)

    return jax.vmap(one)(stacked, ads, bids)


@pytest.fixture
def exact(monkeypatch):
    """Scores are whole numbers, so equal scores tie exactly whatever the order of sums.

    A code without alternative scores 0, as its log-probability does.
    """

    def whole(logits, token_bids, valid, alpha, beta):
        return jnp.where(valid, logits + jnp.floor(4 * token_bids), IMPOSSIBLE)

    def unchanged(scores):
        where = scores > IMPOSSIBLE / 2
        scores = jnp.where(where.sum(-1, keepdims=True) > 1, scores, jnp.where(where, 0.0, scores))
        return scores.at[:, 0].set(jnp.where(where.any(-1), scores[:, 0], 0.0))

    for module in (beam_module, joint_module):
        monkeypatch.setattr(module, "token_scores", whole)
        monkeypatch.setattr(module, "log_probs_of", unchanged)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("token_bid", ["max", "mean"])
def test_ties_are_broken_as_in_the_oracle(exact, token_bid):
    decoder = random_decoder(0, K, C, W, whole=True)
    found = jax.device_get(both(decoder, requests(0), *reports(0), token_bid, "prefix"))
    for oracle, beams in found:
        np.testing.assert_array_equal(beams.where, oracle.where)
        live = oracle.where
        np.testing.assert_array_equal(beams.items[live], oracle.items[live])
        np.testing.assert_array_equal(beams.codes[live], oracle.codes[live])
        np.testing.assert_array_equal(beams.log_prob[live], oracle.log_prob[live])


@each_choice
def test_slates_and_scores_are_the_oracles(token_bid, scope):
    decoder = random_decoder(1, K, C, W)
    found = jax.device_get(both(decoder, requests(1), *reports(1), token_bid, scope))
    for oracle, beams in found:
        live = oracle.where
        assert live.mean() > 0.3
        np.testing.assert_array_equal(beams.where, live)
        np.testing.assert_allclose(beams.log_prob[live], oracle.log_prob[live], atol=1e-4)
        same = (beams.items == oracle.items).all(-1)[live]
        assert same.mean() > 0.999  # Near ties may swap.


@functools.partial(jax.jit, static_argnames="num_beams")
def searched(decoder, request, num_beams):
    candidates = in_book(request, "max", "prefix")
    beams = beam_search(decoder, MEMORY, candidates, num_beams=num_beams, alpha=1.2, beta=0.5)
    logits = jax.vmap(lambda codes: decoder.slate_logits(MEMORY, codes))(beams.codes)
    return beams, logits


@pytest.mark.parametrize("seed", range(60))
def test_pois_that_are_both_ad_and_organic_by_enumeration(seed):
    rng = np.random.default_rng(seed)
    first = random_request(rng, 6, C, W)
    poi = np.arange(6)
    for i in np.flatnonzero(~first.is_ad):  # Some organic items are of an ad's POI and codes.
        if first.is_ad.any() and rng.random() < 0.7:
            poi[i] = rng.choice(np.flatnonzero(first.is_ad))
    codes = first.codes[poi]
    where = first.where.copy()
    for i in np.flatnonzero(~first.is_ad):  # An organic item is listed once.
        where[i] &= not (poi[:i][~first.is_ad[:i]] == poi[i]).any()
    request = RepeatingRequest(
        codes=codes, is_ad=first.is_ad, bid=first.bid, where=where, max_ads=first.max_ads,
        min_gap=first.min_gap, poi=poi,
    )  # fmt: skip
    decoder = random_decoder(2, K, C, W)
    fields = {
        "codes": codes, "item": poi.astype(np.int32), "is_ad": first.is_ad, "bid": first.bid,
        "where": where, "reserve": np.float32(0), "max_ads": np.int32(first.max_ads),
        "min_gap": np.int32(first.min_gap), "smoothing": np.float32(0),
    }  # fmt: skip
    beams, logits = jax.device_get(searched(decoder, fields, 160))
    found = {tuple(s.tolist()): n for n, s in enumerate(beams.items) if beams.where[n]}
    slates = list(all_slates(request, K))
    assert found.keys() == {tuple(int(i) for i in items) for items, _, _ in slates}
    for items, codes_of_slate, steps in slates:
        n = found[tuple(int(i) for i in items)]
        expected = slate_log_prob(np.float64(logits[n]), codes_of_slate, steps, 1.2, 0.5)
        np.testing.assert_allclose(beams.log_prob[n], expected, atol=1e-4)
