"""The choice of creatives against a loop over what each POI owns."""

import functools

import jax
import numpy as np
import pytest
from tiny_generator import CATALOGUE, CONFIG, C, K, R, forward, init_params, random_inputs

from ega_jax.generation.codes import codes_of
from ega_jax.generation.creatives import choose_creatives, creative_log_probs
from ega_jax.generation.generator import Generator, GeneratorDecoder

POI = np.array([[0, 4, 8], [1, 2, -1], [3, 0, 1]], np.int32)  # 8 owns none, -1 is empty.
FORWARD = jax.jit(forward)


@pytest.fixture(scope="module")
def params():
    return init_params()


def decoder_of(params):
    return GeneratorDecoder(params, CONFIG)


@jax.jit
def encode(params, history_poi, history_creative, poi):
    """Memory and the states of the POI decoder that the creative decoder reads."""

    def whole(model):
        memory = model.encode(history_poi, history_creative, CATALOGUE)
        codes = codes_of(CATALOGUE.poi_codes, poi)
        return memory, model.poi_states(memory, codes)[..., -1, :]

    return Generator(CONFIG).apply({"params": params}, method=whole)


def full_log_probs(params, history_poi, history_creative):
    """`[B, K, R]` log-probability of every creative in every slot, by the full forward pass."""
    poi_codes = codes_of(CATALOGUE.poi_codes, POI)
    scores = np.zeros((*POI.shape, R))
    for creative, codes in enumerate(np.asarray(CATALOGUE.creative_codes)):
        everywhere = np.broadcast_to(codes, (*POI.shape, C))
        logits = FORWARD(params, history_poi, history_creative, poi_codes, everywhere).creative
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        scores[..., creative] = sum(log_probs[..., layer, codes[layer]] for layer in range(C))
    return scores


def test_the_best_owned_creative_by_full_enumeration(params):
    history_poi, history_creative, *_ = random_inputs()
    scores = full_log_probs(params, history_poi, history_creative)
    owned = np.asarray(CATALOGUE.poi_creatives)
    expected = np.full(POI.shape, -1)
    for b, k in np.ndindex(*POI.shape):
        mine = [r for r in owned[POI[b, k]] if r >= 0] if POI[b, k] >= 0 else []
        if mine:
            expected[b, k] = max(mine, key=lambda r, b=b, k=k: scores[b, k, r])
    assert not np.array_equal(expected, owned[POI, 0]), "the case is not always the first"
    memory, states = encode(params, history_poi, history_creative, POI)
    choose = jax.jit(functools.partial(choose_creatives, catalogue=CATALOGUE))
    np.testing.assert_array_equal(
        choose(decoder_of(params), memory=memory, states=states, poi=POI), expected
    )


def test_scores_are_those_of_the_full_pass_and_sum_to_one(params):
    history_poi, history_creative, *_ = random_inputs()
    memory, states = encode(params, history_poi, history_creative, POI)
    everyone = np.broadcast_to(np.arange(R, dtype=np.int32), (*POI.shape, R))
    score = jax.jit(functools.partial(creative_log_probs, catalogue=CATALOGUE))
    found = score(
        GeneratorDecoder(params, CONFIG), memory=memory, states=states, poi=POI, creatives=everyone
    )
    expected = full_log_probs(params, history_poi, history_creative)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    distinct = np.unique(CATALOGUE.creative_codes, axis=0, return_index=True)[1]
    assert (np.exp(expected[..., distinct]).sum(-1) <= 1 + 1e-4).all()


def test_one_request_is_a_row_of_the_batch(params):
    history_poi, history_creative, *_ = random_inputs()
    choose = functools.partial(choose_creatives, catalogue=CATALOGUE)
    together = choose_for(params, choose, history_poi, history_creative, POI)
    assert together.shape == (3, K)
    for row in range(3):
        alone = choose_for(params, choose, history_poi[row], history_creative[row], POI[row])
        np.testing.assert_array_equal(alone, together[row])


def choose_for(params, choose, history_poi, history_creative, poi):
    memory, states = encode(params, history_poi, history_creative, poi)
    return jax.jit(choose)(decoder_of(params), memory=memory, states=states, poi=poi)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_pmap(params):
    history_poi, history_creative, *_ = random_inputs(rows=4)
    poi = np.array([[0, 4, 8], [1, 2, -1], [3, 0, 1], [4, 0, 0]], np.int32)

    def one(params, history_poi, history_creative, poi):
        memory, states = encode(params, history_poi, history_creative, poi)
        return choose_creatives(decoder_of(params), memory, states, poi, CATALOGUE)

    inputs = (history_poi, history_creative, poi)
    parallel = jax.pmap(one, in_axes=(None, 0, 0, 0), devices=jax.devices()[:4])(params, *inputs)
    single = jax.jit(one)
    alone = [single(params, *row) for row in zip(*inputs, strict=True)]
    np.testing.assert_array_equal(parallel, np.stack(alone))
