"""Searching variants of a request together finds what searching each alone does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from listed import listed
from slates import random_request
from tiny_generator import CATALOGUE, CONFIG, K, W, init_params, random_inputs

from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.generator import GeneratorDecoder
from ega_jax.generation.joint_search import joint_search
from ega_jax.generation.reports import ABSENT, Report

N, R, S = 7, 6, 5


@jax.jit
def both(params, poi, creative, codes, is_ad, bid, where, reports):
    decoder = GeneratorDecoder(params, CONFIG)
    memory = decoder.encode(poi, creative, CATALOGUE)
    candidates = listed(codes, is_ad, bid, where, K, W, max_ads=2)
    settings = {"num_beams": S, "alpha": 1.2, "beta": 0.5}
    search = lambda report: beam_search(decoder, memory, candidates.reporting(report), **settings)
    alone = jax.vmap(search)(reports)
    return alone, joint_search(decoder, memory, candidates, reports, **settings)


@pytest.mark.parametrize("seed", range(12))
def test_together_is_as_alone(seed):
    rng = np.random.default_rng(seed)
    request = random_request(rng, N, CONFIG.num_layers, CONFIG.num_codes)
    who = rng.choice([-1, *np.flatnonzero(request.is_ad)], R).astype(np.int32)
    reports = Report(who, rng.choice([ABSENT, 0.0, 0.3, 1.0, 4.0], R).astype(np.float32))
    poi, creative, *_ = random_inputs(seed, 1)
    alone, together = both(
        init_params(), poi[0], creative[0], request.codes, request.is_ad, request.bid,
        request.where, reports,
    )  # fmt: skip
    live = np.asarray(alone.where)
    np.testing.assert_array_equal(live, together.where)
    np.testing.assert_array_equal(alone.items, together.items)
    np.testing.assert_array_equal(alone.codes, together.codes)
    np.testing.assert_allclose(alone.log_prob[live], together.log_prob[live], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(alone.log_z, together.log_z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(alone.states[live], together.states[live], rtol=1e-3, atol=1e-3)
    assert live.any() or request.where.sum() < 2


def test_equal_variants_have_equal_slates():
    rng = np.random.default_rng(3)
    request = random_request(rng, N, CONFIG.num_layers, CONFIG.num_codes)
    poi, creative, *_ = random_inputs(3, 1)
    _, together = both(
        init_params(), poi[0], creative[0], request.codes, request.is_ad, request.bid,
        np.ones(N, bool), Report.none(R),
    )  # fmt: skip
    for field in jax.tree.leaves(together):
        assert jnp.array_equal(field, jnp.broadcast_to(field[:1], field.shape))
