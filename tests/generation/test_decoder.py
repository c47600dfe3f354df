"""Searches, slate policy and creatives with a decoder that is not the project's generator."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from listed import listed
from slates import all_slates, random_request, slate_log_prob
from toy_decoder import Sizes, Summing, random_decoder

from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.creatives import choose_creatives
from ega_jax.generation.decoder import Decoder, DecoderSizes
from ega_jax.generation.generator import GeneratorConfig, GeneratorDecoder
from ega_jax.generation.joint_search import joint_search
from ega_jax.generation.reports import Report
from ega_jax.generation.slate_policy import slate_log_probs
from ega_jax.types import Catalogue

N, W, C, K, D, P, R = 5, 3, 2, 3, 4, 6, 9
ALL, VARIANTS = 90, 3  # Beams for every slate; variants of a request that are searched at once.
ALPHA, BETA = 1.2, 0.5


_random = np.random.default_rng(0)
DECODER = random_decoder(0, K, C, W, D)
CATALOGUE = Catalogue(  # POI 5 owns no creative.
    poi_codes=jnp.asarray(_random.integers(0, W, (P, C)), jnp.int32),
    creative_codes=jnp.asarray(_random.integers(0, W, (R, C)), jnp.int32),
    poi_creatives=jnp.asarray(
        [[0, 1, 2], [3, 4, -1], [5, -1, -1], [6, 7, -1], [8, -1, -1], [-1, -1, -1]], jnp.int32
    ),
)
HISTORY = jnp.array([-1, 3, 0, 4])


def methods(kind):
    """Public methods of a class with the names of their parameters."""
    found = inspect.getmembers(kind, inspect.isfunction)
    return {name: [*inspect.signature(f).parameters] for name, f in found if name[0] != "_"}


@pytest.mark.parametrize("kind", [Summing, GeneratorDecoder])
def test_a_decoder_has_the_methods_of_the_protocol(kind):
    own, asked = methods(kind), methods(Decoder)
    assert {name: own.get(name) for name in asked} == asked
    sizes = {Summing: Sizes, GeneratorDecoder: GeneratorConfig}[kind]
    asked = {name for name, x in vars(DecoderSizes).items() if isinstance(x, property)}
    assert asked <= {field.name for field in dataclasses.fields(sizes)}


def memory_by_loop():
    """`[D]` in float64."""
    table, codes = np.float64(DECODER.table), np.asarray(CATALOGUE.poi_codes)
    return sum(table[0, codes[poi, 0]] for poi in HISTORY.tolist() if poi >= 0)


def along(codes):
    """States `[K, C, D]` and logits `[K, C, W]` of a slate's codes `[K, C]`, step by step."""
    table, place, head = (np.float64(x) for x in (DECODER.table, DECODER.place, DECODER.head))
    states, logits = np.zeros((K, C, D)), np.zeros((K, C, W))
    state, last = memory_by_loop(), np.ones(D)
    for step in range(K * C):
        slot, layer = divmod(step, C)
        state = state + last + place[step]
        states[slot, layer], logits[slot, layer] = state, state @ head[layer]
        last = table[layer, codes[slot, layer]]
    return states, logits


def exhaustive(request):
    """`{items: (log-probability, states)}` of every slate."""
    found = {}
    for items, codes, steps in all_slates(request, K):
        states, logits = along(codes)
        log_prob = slate_log_prob(logits, codes, steps, ALPHA, BETA)
        found[tuple(int(i) for i in items)] = log_prob, states[:, -1]
    return found


def candidates_of(request):
    return listed(
        request["codes"], request["is_ad"], request["bid"], request["where"], K, W,
        max_ads=request["max_ads"], min_gap=request["min_gap"],
    )  # fmt: skip


@jax.jit
def searched(decoder, request, reports):
    """The beams of a request, those of its variants, and the policy's word on the former."""
    memory = decoder.encode(HISTORY, HISTORY, CATALOGUE)
    settings = {"num_beams": ALL, "alpha": ALPHA, "beta": BETA}
    candidates = candidates_of(request)
    beams = beam_search(decoder, memory, candidates, **settings)
    together = joint_search(decoder, memory, candidates, reports, **settings)
    log_z = jax.vmap(
        lambda items: slate_log_probs(decoder, memory, candidates, items, ALPHA, BETA)
    )(beams.items)
    return beams, together, log_z


def assert_is(beams, expected):
    """Beams hold every slate with its probability and states."""
    live = np.flatnonzero(beams.where)
    assert {tuple(beams.items[s].tolist()) for s in live} == expected.keys()
    for s in live:
        log_prob, states = expected[tuple(beams.items[s].tolist())]
        np.testing.assert_allclose(beams.log_prob[s], log_prob, atol=1e-4)
        filled = beams.items[s] >= 0
        np.testing.assert_allclose(beams.states[s][filled], states[filled], atol=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_both_searches_and_the_policy_are_exhaustive_enumeration(seed):
    rng = np.random.default_rng(seed)
    request = random_request(rng, N, C, W)
    fields = {name: jnp.asarray(x) for name, x in vars(request).items()}
    ads = np.flatnonzero(request.is_ad & request.where)
    ad = rng.choice(ads) if ads.size else -1
    reports = Report(jnp.array([-1, ad, ad]), jnp.array([-1.0, -1.0, 2.0]))
    beams, together, log_z = jax.device_get(searched(DECODER, fields, reports))
    assert_is(beams, exhaustive(request))
    np.testing.assert_allclose(log_z[beams.where], beams.log_z[beams.where], atol=1e-4)
    for variant in range(VARIANTS):
        own = (np.arange(N) == ad) & (variant > 0)
        where = request.where & ~(own & (variant == 1))
        bid = np.where(own, 2.0, request.bid).astype(np.float32)
        expected = exhaustive(dataclasses.replace(request, where=where, bid=bid))
        assert_is(jax.tree.map(lambda x, v=variant: x[v], together), expected)


def test_the_best_creative_by_enumeration():
    rng = np.random.default_rng(1)
    poi = rng.integers(-1, P, (20, K)).astype(np.int32)
    states = rng.normal(size=(20, K, D)).astype(np.float32)
    memory = jnp.zeros(D)
    choose = jax.jit(lambda *x: choose_creatives(DECODER, memory, *x, CATALOGUE))
    table, head = np.float64(DECODER.table), np.float64(DECODER.head)
    poi_codes, codes = np.asarray(CATALOGUE.poi_codes), np.asarray(CATALOGUE.creative_codes)

    def score(state, owner, creative):
        x, total = state + table[0, poi_codes[owner, 0]], 0.0
        for layer, code in enumerate(codes[creative]):
            logits = x @ head[layer]
            total += logits[code] - np.log(np.exp(logits).sum())
            x = x + table[layer, code]
        return total

    expected = np.full(poi.shape, -1)
    for b, k in np.ndindex(*poi.shape):
        owned = np.asarray(CATALOGUE.poi_creatives)[poi[b, k]] if poi[b, k] >= 0 else np.array([-1])
        scores = {r: score(states[b, k], poi[b, k], r) for r in owned.tolist() if r >= 0}
        if scores:
            expected[b, k] = max(scores, key=scores.get)
    np.testing.assert_array_equal(choose(states, poi), expected)
    assert (expected != np.asarray(CATALOGUE.poi_creatives)[poi, 0])[poi >= 0].any()
