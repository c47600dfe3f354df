"""What the generator may see, what it must ignore, and its shapes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_generator import (
    CATALOGUE,
    CONFIG,
    C,
    K,
    P,
    T,
    W,
    forward,
    init_params,
    random_inputs,
)

from ega_jax.generation import generator
from ega_jax.generation.generator import Generator, GeneratorConfig
from ega_jax.types import Catalogue

FORWARD = jax.jit(forward, static_argnames="config")


@jax.jit
@jax.value_and_grad
def cubes(params, *inputs):
    """A loss that no parameter leaves unmoved."""
    logits = forward(params, *inputs)
    return jnp.mean(logits.poi**3) + jnp.mean(logits.creative**3)


@pytest.fixture(scope="module")
def params():
    return init_params()


def assert_differ(left, right):
    assert np.abs(np.asarray(left) - np.asarray(right)).max() > 1e-3


same = functools.partial(np.testing.assert_allclose, atol=1e-5)


def test_shapes_at_the_papers_sizes():
    """By abstract evaluation: nothing of this size is allocated."""
    config = GeneratorConfig(
        num_codes=1024, num_layers=3, num_slots=10, history_length=256, width=256, num_heads=8,
        hidden=1024, dtype="bfloat16",
    )  # fmt: skip
    ids = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    catalogue = Catalogue(ids(10**6, 3), ids(3 * 10**6, 3), ids(10**6, 5))
    init = functools.partial(generator.init, config=config)
    params = jax.eval_shape(lambda c: init(jax.random.key(0), catalogue=c), catalogue)
    assert params["poi"]["table"].shape == (3, 1024, 256)
    assert params["creative"]["head"].shape == (3, 256, 1024)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def whole(params, catalogue, poi, creative, poi_codes, creative_codes):
        def run(model):
            memory = model.encode(poi, creative, catalogue)
            return memory, model(memory, poi_codes, creative_codes)

        return Generator(config).apply({"params": params}, method=run)

    codes = ids(128, 10, 3)
    memory, logits = jax.eval_shape(
        whole, params, catalogue, ids(128, 256), ids(128, 256), codes, codes
    )
    assert memory.where.shape == (128, 512)
    assert [kv.keys.shape for kv in memory.poi] == [(128, 512, 8, 32)] * 3
    assert {kv.keys.dtype for kv in memory.poi + memory.creative} == {jnp.dtype("bfloat16")}
    for head in (logits.poi, logits.creative):
        assert (head.shape, head.dtype) == ((128, 10, 3, 1024), jnp.float32)


def test_a_poi_code_is_seen_only_by_what_comes_after(params):
    history_poi, history_creative, poi, creative = random_inputs()
    before = FORWARD(params, history_poi, history_creative, poi, creative)
    for step in range(K * C):
        slot, layer = divmod(step, C)
        other = poi.copy()
        other[:, slot, layer] = (other[:, slot, layer] + 1) % W
        after = FORWARD(params, history_poi, history_creative, other, creative)
        flat = lambda logits: logits.poi.reshape(-1, K * C, W)
        same(flat(after)[:, : step + 1], flat(before)[:, : step + 1])
        if step + 1 < K * C:
            assert_differ(flat(after)[:, step + 1], flat(before)[:, step + 1])
        same(after.creative[:, :slot], before.creative[:, :slot])
        assert_differ(after.creative[:, slot], before.creative[:, slot])


def test_a_creative_code_is_seen_only_by_the_later_codes_of_its_creative(params):
    history_poi, history_creative, poi, creative = random_inputs()
    before = FORWARD(params, history_poi, history_creative, poi, creative)
    for slot in range(K):
        for layer in range(C):
            other = creative.copy()
            other[:, slot, layer] = (other[:, slot, layer] + 1) % W
            after = FORWARD(params, history_poi, history_creative, poi, other)
            same(after.poi, before.poi)
            elsewhere = np.arange(K) != slot
            same(after.creative[:, elsewhere], before.creative[:, elsewhere])
            same(after.creative[:, slot, : layer + 1], before.creative[:, slot, : layer + 1])
            if layer + 1 < C:
                assert_differ(
                    after.creative[:, slot, layer + 1], before.creative[:, slot, layer + 1]
                )


def test_padding_on_the_left_is_as_a_shorter_history(params):
    history_poi, history_creative, poi, creative = random_inputs()
    short = FORWARD(params, history_poi[:, 2:], history_creative[:, 2:], poi, creative)
    padding = np.full((len(poi), 2), -1, np.int32)
    padded = FORWARD(
        params,
        np.hstack([padding, history_poi[:, 2:]]),
        np.hstack([padding, history_creative[:, 2:]]),
        poi,
        creative,
    )
    jax.tree.map(same, padded, short)
    whole = FORWARD(params, history_poi, history_creative, poi, creative)
    assert_differ(whole.poi, padded.poi)


def test_a_missing_creative_is_not_creative_0(params):
    history_poi, history_creative, poi, creative = random_inputs()
    run = lambda creatives: FORWARD(params, history_poi, creatives, poi, creative).poi
    assert_differ(run(np.full_like(history_creative, -1)), run(np.zeros_like(history_creative)))


def test_order_of_the_history_counts(params):
    history_poi, history_creative, poi, creative = random_inputs()
    run = lambda poi_ids, ids: FORWARD(params, poi_ids, ids, poi, creative).poi
    assert_differ(
        run(history_poi, history_creative), run(history_poi[:, ::-1], history_creative[:, ::-1])
    )


def test_an_empty_history_is_finite_and_so_are_its_gradients(params):
    _, _, poi, creative = random_inputs()
    empty = np.full((len(poi), T), -1, np.int32)
    value, grads = cubes(params, empty, empty, poi, creative)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_every_parameter_gets_a_finite_gradient(params):
    _, grads = cubes(params, *random_inputs())
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


def test_a_batch_is_its_rows(params):
    inputs = random_inputs()
    together = FORWARD(params, *inputs)
    apart = jax.jit(jax.vmap(forward, in_axes=(None, 0, 0, 0, 0)))(params, *inputs)
    jax.tree.map(same, together, apart)


def test_dropout_is_off_unless_asked_for_and_leaves_the_parameters_alone(params):
    config = dataclasses.replace(CONFIG, dropout_rate=0.5)
    inputs = random_inputs()
    plain = FORWARD(params, *inputs)
    jax.tree.map(same, FORWARD(params, *inputs, config=config), plain)

    @jax.jit
    def dropped(key):
        def whole(model):
            memory = model.encode(*inputs[:2], CATALOGUE, deterministic=False)
            return model(memory, *inputs[2:], deterministic=False)

        return Generator(config).apply({"params": params}, method=whole, rngs={"dropout": key})

    one, again, two = (dropped(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(same, one, again)
    assert_differ(one.poi, two.poi)
    assert_differ(one.creative, two.creative)


def test_half_precision_is_near_single(params):
    params = jax.tree.map(lambda x: x / 3 if x.ndim > 1 else x, params)  # as at initialisation.
    inputs = random_inputs()
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    single, half = FORWARD(params, *inputs), FORWARD(params, *inputs, config=config)
    for name in ("poi", "creative"):
        found, expected = getattr(half, name), np.asarray(getattr(single, name))
        assert found.dtype == jnp.float32
        assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_without_creatives_there_is_nothing_of_them():
    config = dataclasses.replace(CONFIG, creatives=False)
    none = Catalogue(
        CATALOGUE.poi_codes, jnp.zeros((0, C), jnp.int32), jnp.zeros((P, 0), jnp.int32)
    )
    params = jax.eval_shape(lambda: generator.init(jax.random.key(0), config, none))
    assert not [name for name in params if "creative" in name]
    history = np.zeros((1, T), np.int32)
    memory = jax.eval_shape(
        lambda p: Generator(config).apply({"params": p}, history, history, none, method="encode"),
        params,
    )
    assert memory.where.shape == (1, T)
    assert memory.creative == ()


APART = dataclasses.replace(CONFIG, multi_token=False)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def creative_cubes(params, *inputs):
    """A loss of creatives predicted apart, and all logits."""
    logits = forward(params, *inputs, config=APART)
    return jnp.mean(logits.creative**3), logits


def test_creatives_predicted_apart_leave_pois_alone(params):
    """And know nothing of the POI decoder: next-token prediction beside that of the POIs."""
    apart, inputs = init_params(APART), random_inputs()
    assert params.keys() - apart.keys() == {"state_norm"}
    apart = {name: params[name] for name in apart} | {"creative_in": apart["creative_in"]}
    (_, logits), grads = creative_cubes(apart, *inputs)
    same(logits.poi, FORWARD(params, *inputs).poi)

    own = {"creative", "creative_in", "creative_block", "creative_mlp", "item_norm", "layer"}
    for name, grad in grads.items():
        sizes = [np.abs(leaf).max() for leaf in jax.tree.leaves(grad)]
        assert all(size > 0 for size in sizes) if name in own else not any(sizes), name

    decoder = {name: params[name] for name in ("decoder_0", "slot", "begin")}
    other = apart | jax.tree.map(lambda x: x + 0.5, decoder)
    (_, moved), _ = creative_cubes(other, *inputs)
    same(moved.creative, logits.creative)
    assert_differ(moved.poi, logits.poi)
    history = (inputs[0] + 1) % P
    assert_differ(creative_cubes(apart, history, *inputs[1:])[0][1].creative, logits.creative)


@pytest.mark.parametrize("slots", [1, 2])
def test_fewer_slots_are_the_first_of_more(params, slots):
    history_poi, history_creative, poi, creative = random_inputs()
    whole = FORWARD(params, history_poi, history_creative, poi, creative)
    first = FORWARD(params, history_poi, history_creative, poi[:, :slots], creative[:, :slots])
    jax.tree.map(lambda a, b: same(a, b[:, :slots]), first, whole)
