"""The context as one more position of the generator's encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_generator import CATALOGUE, CONFIG, T, init_params, random_batch, random_inputs

from ega_jax.generation.generator import Generator
from ega_jax.generation.pretraining import pretraining_loss
from ega_jax.types import FARTHEST, ContextScale

SCALE = ContextScale(mean=(10.0, -3.0, 5.0), deviation=(4.0, 0.5, 0.0))
WITH = dataclasses.replace(CONFIG, context=SCALE)


def contexts(rows, seed=5):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal((10.0, -3.0, 5.0), (4.0, 0.5, 0.0), (rows, 3)))


@pytest.fixture(scope="module")
def params():
    return init_params(WITH)


def run(params, history_poi, history_creative, context, poi_codes, creative_codes, config=WITH):
    """The memory, and the logits of POI codes and creative codes."""

    def whole(model):
        memory = model.encode(history_poi, history_creative, CATALOGUE, context)
        return memory, model(memory, poi_codes, creative_codes)

    memory, logits = Generator(config).apply({"params": params}, method=whole)
    return memory, np.stack([logits.poi, logits.creative])


def test_without_a_context_parameters_and_results_stay(params):
    """With one, all other parameters are the same, since each is drawn by its own name."""
    before = init_params(CONFIG)
    assert params.keys() - before.keys() == {"context"}
    others = {name: params[name] for name in before}
    jax.tree.map(np.testing.assert_array_equal, before, others)
    inputs = random_inputs()
    _, found = run(before, *inputs[:2], None, *inputs[2:], config=CONFIG)
    _, ignoring = run(before, *inputs[:2], contexts(3), *inputs[2:], config=CONFIG)
    np.testing.assert_array_equal(found, ignoring)


def test_it_is_the_last_position_and_never_masked(params):
    inputs = random_inputs()
    nothing = np.full_like(inputs[0], -1)
    memory, _ = run(params, nothing, nothing, contexts(3), *inputs[2:])
    assert memory.where.shape == (3, 2 * T + 1)
    assert np.asarray(memory.where).tolist() == [[False] * 2 * T + [True]] * 3


@pytest.mark.parametrize("empty", [False, True])
def test_predictions_follow_it_request_by_request(params, empty):
    inputs = random_inputs()
    history = [np.full_like(x, -1) if empty else x for x in inputs[:2]]
    context = contexts(3)
    changed = context + np.float32([[0, 0, 0], [2, 0.2, 0], [0, 0, 0]])
    _, before = run(params, *history, context, *inputs[2:])
    _, after = run(params, *history, changed, *inputs[2:])
    gap = np.abs(before - after).max(axis=(2, 3, 4))
    assert (gap[:, 1] > 1e-3).all()
    np.testing.assert_allclose(gap[:, [0, 2]], 0, atol=1e-5)


def test_it_is_standardised(params):
    """A value that never varied is ignored, and a far one is clipped."""
    inputs = random_inputs()
    context = contexts(3)
    plain = dataclasses.replace(CONFIG, context=ContextScale((0.0,) * 3, (1.0,) * 3))
    by_hand = np.stack(
        [(context[:, 0] - 10) / 4, (context[:, 1] + 3) / 0.5, np.zeros(3)], 1
    ).astype(np.float32)
    _, expected = run(params, *inputs[:2], by_hand, *inputs[2:], config=plain)
    for changes in ([0, 0, 0], [0, 0, 7]):
        _, found = run(params, *inputs[:2], context + np.float32(changes), *inputs[2:])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    far = np.float32([[1e30, -3.0, 5.0]])
    np.testing.assert_allclose(SCALE.standardised(far), [[FARTHEST, 0, 0]])


def test_a_batch_is_its_rows(params):
    inputs, context = random_inputs(), contexts(3)
    _, whole = run(params, *inputs[:2], context, *inputs[2:])
    for row in range(3):
        _, alone = run(params, *(x[row] for x in (*inputs[:2], context, *inputs[2:])))
        np.testing.assert_allclose(whole[:, row], alone, rtol=1e-4, atol=1e-4)


def test_a_missing_context_is_an_error(params):
    inputs = random_inputs()
    with pytest.raises(ValueError, match="reads a context of 3 values"):
        run(params, *inputs[:2], None, *inputs[2:])


def test_pre_training_reads_it(params):
    batch = random_batch() | {"context": contexts(4)}
    loss = jax.jit(pretraining_loss(WITH, CATALOGUE))
    key = jax.random.key(0)
    grads = jax.grad(lambda params: loss(params, (), batch, key)[0])(params)
    kernel = np.asarray(grads["context"]["kernel"])
    assert (np.abs(kernel).max(axis=1) > 0).tolist() == [True, True, False]
    other = batch | {"context": jnp.asarray(batch["context"]) + jnp.float32([4, 0.5, 0])[None]}
    assert loss(params, (), batch, key)[0] != loss(params, (), other, key)[0]
