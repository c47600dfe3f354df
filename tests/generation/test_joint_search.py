"""Searching variants of a request together finds what searching each alone does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slates import random_request
from tiny_generator import CATALOGUE, CONFIG, init_params, random_inputs

from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.candidates import request_candidates
from ega_jax.generation.generator import GeneratorDecoder
from ega_jax.generation.joint_search import joint_search

N, R, S = 7, 6, 5


@jax.jit
def both(params, poi, creative, codes, is_ad, bids, where):
    decoder = GeneratorDecoder(params, CONFIG)
    memory = decoder.encode(poi, creative, CATALOGUE)
    candidates = jax.vmap(
        lambda bid, where: request_candidates(codes, is_ad, bid, where, max_ads=2)
    )(bids, where)
    settings = {"num_beams": S, "alpha": 1.2, "beta": 0.5}
    alone = jax.vmap(lambda c: beam_search(decoder, memory, c, **settings))(candidates)
    return alone, joint_search(decoder, memory, candidates, **settings)


@pytest.mark.parametrize("seed", range(12))
def test_together_is_as_alone(seed):
    rng = np.random.default_rng(seed)
    request = random_request(rng, N, CONFIG.num_layers, CONFIG.num_codes)
    bids = request.bid * rng.choice([0.0, 0.3, 1.0, 4.0], (R, N)).astype(np.float32)
    where = request.where & (rng.random((R, N)) < 0.9)
    poi, creative, *_ = random_inputs(seed, 1)
    alone, together = both(
        init_params(), poi[0], creative[0], request.codes, request.is_ad, bids, where
    )
    live = np.asarray(alone.where)
    np.testing.assert_array_equal(live, together.where)
    np.testing.assert_array_equal(alone.items, together.items)
    np.testing.assert_array_equal(alone.codes, together.codes)
    np.testing.assert_allclose(alone.log_prob[live], together.log_prob[live], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(alone.log_z, together.log_z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(alone.states[live], together.states[live], rtol=1e-3, atol=1e-3)
    assert live.any() or not where.any(axis=1).any()


def test_equal_variants_have_equal_slates():
    rng = np.random.default_rng(3)
    request = random_request(rng, N, CONFIG.num_layers, CONFIG.num_codes)
    poi, creative, *_ = random_inputs(3, 1)
    _, together = both(
        init_params(), poi[0], creative[0], request.codes, request.is_ad,
        np.tile(request.bid, (R, 1)), np.ones((R, N), bool),
    )  # fmt: skip
    for field in jax.tree.leaves(together):
        assert jnp.array_equal(field, jnp.broadcast_to(field[:1], field.shape))
