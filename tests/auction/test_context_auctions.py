"""Requests with a context, from the models to prices: allocations, explanations, saving, tables."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_log import shaken
from tiny_mechanism import tiny_mechanism
from tiny_models import GENERATOR, LEVERS, REWARD, random_requests, tiny_ega, with_beams

from ega_jax.auction.alignment import AlignmentConfig
from ega_jax.errors import UserError
from ega_jax.generation import generator
from ega_jax.generation.generator import GeneratorDecoder
from ega_jax.mechanism import Mechanism, mechanism_folder, serve
from ega_jax.phases.ega import auction_loss
from ega_jax.phases.requests import request_of
from ega_jax.reward import model as reward_model
from ega_jax.types import ContextScale

SCALE = ContextScale(mean=(1.0, -2.0), deviation=(2.0, 0.5))
ROWS = 6


@functools.cache
def system():
    """The system of `tiny_models`, whose models also read a context."""
    sizes = dataclasses.replace(GENERATOR, context=SCALE)
    reward = dataclasses.replace(REWARD, context=SCALE)
    items = tiny_ega().items
    init = jax.jit(lambda key: generator.init(key, sizes, items.catalogue))
    judge = jax.jit(lambda key: reward_model.init(key, reward, items))
    found = with_beams(tiny_ega(), 4)
    return dataclasses.replace(
        found,
        reward=shaken(judge(jax.random.key(1)), noise=0.05),
        decoder=GeneratorDecoder(shaken(init(jax.random.key(0))), sizes),
        config=dataclasses.replace(found.config, reward=reward),
    )


@functools.cache
def mechanism() -> Mechanism:
    return dataclasses.replace(tiny_mechanism(), system=system())


def requests(seed=11):
    rng = np.random.default_rng(seed)
    context = np.float32(rng.normal((1.0, -2.0), (2.0, 0.5), (ROWS, 2)))
    return random_requests(seed, ROWS).replace(context=context)


def test_predictions_follow_the_context_of_their_request():
    before = mechanism().allocate(requests())
    changed = np.array(requests().context)
    changed[1] = [4.0, -2.5]
    after = mechanism().allocate(requests().replace(context=changed))
    gap = np.abs(np.asarray(before.pctr) - np.asarray(after.pctr)).max(axis=1)
    assert gap[1] > 1e-4
    np.testing.assert_allclose(np.delete(gap, 1), 0, atol=1e-6)


def test_contexts_change_without_compiling_again():
    _ = mechanism().allocate(requests())
    compiled = serve._cache_size()
    for value in (0.0, 3.0):
        context = np.full((ROWS, 2), value).tolist()
        _ = mechanism().allocate(requests().replace(context=context))
    assert serve._cache_size() == compiled


def test_a_request_without_its_context_is_refused():
    with pytest.raises(UserError, match="context is missing: the models read 2 values"):
        mechanism().allocate(random_requests(11, ROWS))
    with pytest.raises(UserError, match="trained on a log without a context"):
        tiny_mechanism().allocate(requests())


def test_a_saved_mechanism_reads_it_too(tmp_path):
    mechanism().save(mechanism_folder(tmp_path, "ega"))
    restored = Mechanism.restore(tmp_path)
    assert restored.system.config.reward.context == SCALE
    for name, values in vars(restored.allocate(requests())).items():
        np.testing.assert_array_equal(values, getattr(mechanism().allocate(requests()), name))


def test_an_explanation_is_of_the_slate_shown():
    slate = mechanism().allocate(requests())
    explained = mechanism().explain(requests(), row=2)
    np.testing.assert_array_equal(explained.items, slate.items[2])
    np.testing.assert_allclose(explained.pctr, slate.pctr[2], rtol=1e-4, atol=1e-6)


def test_requests_of_batches_have_it_if_the_log_has():
    batch = vars(requests()) | {"session": np.arange(ROWS)}
    assert request_of(batch).context is batch["context"]
    del batch["context"]
    assert request_of(batch).context is None


def test_the_alignment_reads_it():
    """The log-probabilities of the loss are those of the request's own context."""
    found = system()
    settings = AlignmentConfig(part="all")
    loss = jax.jit(auction_loss(found, settings, LEVERS))
    pretrained = found.decoder.trainable("all")
    batch = jax.tree.map(jnp.asarray, vars(requests()))
    grads, (metrics, _) = jax.grad(loss, has_aux=True)(
        pretrained, pretrained, batch, jax.random.key(0)
    )
    assert np.isfinite(metrics["slate_log_prob"])
    assert np.abs(grads["context"]["kernel"]).max() > 0
