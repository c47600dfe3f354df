"""What the reward model may see, what it must ignore, and its shapes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_reward import CONFIG, ITEMS, B, K, N, P, T, init_params, predict, random_batch

from ega_jax.reward import model
from ega_jax.reward.losses import reward_loss
from ega_jax.reward.model import Items, RewardConfig
from ega_jax.types import Catalogue

PREDICT = jax.jit(predict, static_argnames="config")
POINTWISE = dataclasses.replace(CONFIG, permutation_aware=False)
RESPONSES = ("click_poi", "click_image", "convert")
same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def params():
    return init_params()


def full_batch(seed=3):
    """Sessions without any empty place."""
    rng = np.random.default_rng(seed)
    batch = random_batch(seed)
    batch["history_poi"] = rng.integers(0, P, (B, T)).astype(np.int32)
    batch["item"] = np.stack([rng.permutation(P)[:N] for _ in range(B)]).astype(np.int32)
    batch["is_ad"] = np.broadcast_to(np.arange(N) < 2, (B, N))
    batch["shown_poi"] = batch["item"][:, :K]
    return batch


def changed_slots(params, batch, changes, config=CONFIG):
    """Which slots `[K]` some prediction changes in, when fields of the batch change."""
    before, after = PREDICT(params, batch, config), PREDICT(params, batch | changes, config)
    gap = [np.abs(getattr(before, name) - getattr(after, name)).max(0) for name in RESPONSES]
    return np.max(gap, axis=0) > 1e-4


def with_slot(batch, name, slot, value):
    changed = batch[name].copy()
    changed[:, slot] = value
    return {name: changed}


@pytest.mark.parametrize("slot", range(K))
def test_a_slot_feels_the_others_and_pointwise_does_not(params, slot):
    batch = full_batch()
    others = {
        "shown_poi": (batch["shown_poi"][:, slot] + 1) % P,
        "shown_creative": (batch["shown_creative"][:, slot] + 1) % P,
        "shown_is_ad": ~batch["shown_is_ad"][:, slot],
    }
    for name, value in others.items():
        changes = with_slot(batch, name, slot, value)
        assert changed_slots(params, batch, changes).all(), name
        alone = changed_slots(params, batch, changes, POINTWISE)
        np.testing.assert_array_equal(alone, np.arange(K) == slot, err_msg=name)


def test_pointwise_is_a_slate_of_one_in_that_slot(params):
    batch = full_batch()
    pointwise = PREDICT(params, batch, POINTWISE)
    for slot in range(K):
        alone = with_slot(batch, "shown_poi", np.arange(K) != slot, -1)
        found = PREDICT(params, batch | alone)
        for name in RESPONSES:
            same(getattr(found, name)[:, slot], getattr(pointwise, name)[:, slot])


def test_the_order_of_the_slate_counts(params):
    batch = full_batch()
    names = ("shown_poi", "shown_creative", "shown_is_ad")
    backwards = PREDICT(params, batch | {name: batch[name][:, ::-1] for name in names})
    gap = np.abs(backwards.click_poi[:, ::-1] - PREDICT(params, batch).click_poi)
    assert gap.max() > 1e-3


def test_the_history_and_organic_items_matter_but_not_their_order_nor_the_ads(params):
    batch, is_ad = full_batch(), full_batch()["is_ad"]
    for name in ("history_poi", "history_creative"):
        assert changed_slots(params, batch, {name: batch[name][:, ::-1]}).all(), name
    backwards = {name: batch[name][:, ::-1] for name in ("item", "is_ad")}
    assert not changed_slots(params, batch, backwards).any()
    others = (batch["item"] + 1) % P
    of_organic = np.where(is_ad, batch["item"], others)
    assert changed_slots(params, batch, {"item": of_organic}).all()
    of_ads = np.where(is_ad, others, batch["item"])
    assert not changed_slots(params, batch, {"item": of_ads}).any()


def test_masked_is_removed(params):
    batch = full_batch()
    pad = lambda x, value, left: np.pad(x, ((0, 0), left), constant_values=value)
    removed = batch | {
        "history_poi": batch["history_poi"][:, 2:],
        "history_creative": batch["history_creative"][:, 2:],
        "item": batch["item"][:, :-1],
        "is_ad": batch["is_ad"][:, :-1],
        **{name: batch[name][:, :-1] for name in batch if name.startswith("shown")},
    }
    masked = removed | {
        "history_poi": pad(removed["history_poi"], -1, (2, 0)),
        "history_creative": pad(removed["history_creative"], -1, (2, 0)),
        "item": pad(removed["item"], -1, (0, 1)),
        "is_ad": batch["is_ad"],
        "shown_poi": pad(removed["shown_poi"], -1, (0, 1)),
        "shown_creative": batch["shown_creative"],
        "shown_is_ad": batch["shown_is_ad"],
    }
    short, whole = PREDICT(params, removed), PREDICT(params, masked)
    for name in RESPONSES:
        same(getattr(whole, name)[:, :-1], getattr(short, name))
        assert not np.any(getattr(whole, name)[:, -1])
    same(whole.states[:, :-1], short.states)


def test_a_missing_creative_is_not_creative_0(params):
    batch = full_batch()
    for name in ("history_creative", "shown_creative"):
        none = batch | {name: np.full_like(batch[name], -1)}
        assert changed_slots(params, none, {name: np.zeros_like(batch[name])}).any(), name


def test_one_memory_serves_many_slates(params):
    """`[S, K]` slates of one request, whose memory has no axis for them."""
    batch = full_batch()
    names = ("history_poi", "history_creative", "item", "is_ad")
    rows = {name: batch[name][:1].repeat(B, 0) for name in names}
    found = PREDICT(params, batch | {name: batch[name][0] for name in names})
    jax.tree.map(same, found, PREDICT(params, batch | rows))


def test_a_batch_is_its_rows(params):
    batch = random_batch()
    rows = jax.jit(jax.vmap(predict, in_axes=(None, 0)))(params, batch)
    jax.tree.map(same, rows, PREDICT(params, batch))


@jax.jit
def loss_and_gradient(params, batch):
    loss = reward_loss(CONFIG, ITEMS)
    return jax.value_and_grad(lambda p: loss(p, (), batch, jax.random.key(0))[0])(params)


def test_every_parameter_gets_a_finite_gradient(params):
    batch = full_batch() | {"click_poi": np.ones((B, K), bool)}
    _, grads = loss_and_gradient(params, batch)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


def test_nothing_known_and_nothing_shown_is_finite(params):
    batch = {
        name: np.full_like(value, -1) if value.dtype == np.int32 else value
        for name, value in random_batch().items()
    }
    value, grads = loss_and_gradient(params, batch)
    assert value == 0
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
    assert not np.any(PREDICT(params, batch).click_poi)


def test_shapes_at_the_papers_sizes():
    """By abstract evaluation: 64 slates of a request with 400 candidates."""
    config = RewardConfig(
        num_codes=1024, num_layers=3, num_slots=10, history_length=256, width=128, num_heads=8,
        blocks=2, dtype="bfloat16",
    )  # fmt: skip
    ids = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    real = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    catalogue = Catalogue(ids(10**6, 3), ids(3 * 10**6, 3), ids(10**6, 5))
    items = Items(catalogue, real(10**6, 64), real(3 * 10**6, 32))

    def whole(items, history, candidates, slates):
        params = model.init(jax.random.key(0), config, items)
        memory = model.encode(params, config, items, history, history, candidates)
        return (
            params,
            memory,
            model.predict(params, config, items, memory, slates, slates, slates > 0),
        )

    params, memory, found = jax.eval_shape(whole, items, ids(256), ids(400), ids(64, 10))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert (memory.poi.shape, memory.poi.dtype) == ((256, 8, 16), jnp.bfloat16)
    assert memory.organic.shape == (400, 8, 16)
    for name in RESPONSES:
        prediction = getattr(found, name)
        assert (prediction.shape, prediction.dtype) == ((64, 10), jnp.float32)
    assert found.states.shape == (64, 10, 256)
