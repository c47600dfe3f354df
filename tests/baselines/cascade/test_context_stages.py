"""The stages of the cascade on requests with a context: what reads it, and what learns from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import random_params
from tiny_log import ITEMS, SIZES, B, K, R, fit, random_batch

from ega_jax.baselines.cascade import hstu, peri_cr, tiger, two_tower
from ega_jax.generation import generator
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.types import ContextScale

X = 2
SCALE = ContextScale(mean=(0.0, 5.0), deviation=(1.0, 2.0))
NARROW = {"width": 8, "num_heads": 2}
CATALOGUE = ITEMS.catalogue


def configs(scale):
    sizes = SIZES | {"context": scale}
    whole = GeneratorConfig(**NARROW, encoder_blocks=1, decoder_blocks=1, **sizes)
    return {
        "tiger": tiger.tiger_config(whole),
        "two_tower": two_tower.TwoTowerConfig(width=8, dropout_rate=0.0, **sizes),
        "hstu": hstu.HSTUConfig(**NARROW, dropout_rate=0.0, **sizes),
        "peri_cr": peri_cr.PeriCRConfig(**NARROW, dropout_rate=0.0, **sizes),
    }


def init(name, key, config):
    if name == "tiger":
        return generator.init(key, config, CATALOGUE)
    return {"two_tower": two_tower, "hstu": hstu, "peri_cr": peri_cr}[name].init(key, config, ITEMS)


@functools.cache
def params_of(name, scale=SCALE):
    return random_params(lambda key: init(name, key, configs(scale)[name]))


def outputs(name, params, batch, context, scale=SCALE):
    """What a stage makes of the candidates `[B, N]` of a batch."""
    config, item = configs(scale)[name], batch["item"]
    history = batch["history_poi"], batch["history_creative"]
    first = jnp.zeros_like(item)
    if name == "tiger":
        request = *history, item
        return tiger.item_log_probs(params, config, CATALOGUE, *request, context=context)
    if name == "two_tower":
        table = two_tower.poi_table(params, config, ITEMS)
        return two_tower.scores(params, config, ITEMS, table, *history, item, context)
    if name == "hstu":
        shown = item, first, first > 0, first, context
        return hstu.rank(params, config, ITEMS, *history, *shown).click
    owned = jnp.broadcast_to(jnp.arange(R), (*item.shape, R))
    return peri_cr.score(params, config, ITEMS, *history, item, owned, context)


STAGES = ("tiger", "two_tower", "hstu", "peri_cr")
RUN = jax.jit(outputs, static_argnames=("name", "scale"))


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_reads_the_context_of_its_own_row(name):
    """Also where there is no history."""
    batch, rng = random_batch(), np.random.default_rng(0)
    batch["history_poi"][0] = batch["history_creative"][0] = -1
    context = rng.normal(size=(B, X)).astype(np.float32)
    before = np.asarray(RUN(name, params_of(name), batch, context))
    assert np.isfinite(before).all()
    for row in range(B):
        other = context.copy()
        other[row] += 1.0
        moved = np.abs(np.asarray(RUN(name, params_of(name), batch, other)) - before)
        assert moved[row].max() > 1e-4
        assert np.delete(moved, row, axis=0).max() < 1e-6


@pytest.mark.parametrize("name", STAGES)
def test_the_context_is_standardised(name):
    """Other units with their scale change nothing."""
    batch = random_batch()
    context = np.random.default_rng(1).normal(size=(B, X)).astype(np.float32)
    other = ContextScale(mean=(0.0, 50.0), deviation=(10.0, 20.0))
    found = RUN(name, params_of(name), batch, context)
    scaled = RUN(name, params_of(name), batch, 10 * context, scale=other)
    np.testing.assert_allclose(found, scaled, atol=1e-4)


@pytest.mark.parametrize("name", STAGES)
def test_a_model_without_a_context_ignores_it_and_one_with_it_needs_it(name):
    batch, params = random_batch(), params_of(name, ContextScale())
    assert "context" not in str(jax.tree.structure(params))
    found = RUN(name, params, batch, None, scale=ContextScale())
    ignored = RUN(name, params, batch, np.ones((B, X), np.float32), scale=ContextScale())
    np.testing.assert_array_equal(found, ignored)
    with pytest.raises(ValueError, match="the model reads a context of 2 values"):
        RUN(name, params_of(name), batch, None)


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_learns_from_the_context(name):
    """The sign of the context's first value says which of two items is clicked."""
    batch, rng = random_batch(rows=128), np.random.default_rng(0)
    context = rng.normal(size=(128, X)).astype(np.float32)
    wanted = np.where(context[:, 0] > 0, 3, 6)
    batch["shown_poi"] = np.broadcast_to([3, 6, 1], (128, K)).astype(np.int32)
    batch["click_poi"] = batch["shown_poi"] == wanted[:, None]
    batch["click_image"] = batch["click_poi"]
    batch["target_poi"] = batch["shown_poi"]
    batch["target_weight"] = batch["click_poi"].astype(np.float32)
    batch["context"], config = context, configs(SCALE)[name]
    loss = {
        "tiger": lambda: tiger.tiger_loss(config, CATALOGUE),
        "two_tower": lambda: two_tower.two_tower_loss(config, ITEMS),
        "hstu": lambda: hstu.hstu_loss(config, ITEMS),
        "peri_cr": lambda: peri_cr.peri_cr_loss(config, ITEMS),
    }[name]()
    fresh = jax.jit(lambda key: init(name, key, config))(jax.random.key(0))
    metric = "nll_poi" if name == "tiger" else "nll_click_poi"
    nll, _ = fit(loss, fresh, batch, 200, metric)
    assert nll[-1] < 0.4 * nll[0]
