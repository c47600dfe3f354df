"""What the cascade's stages share: sizes, the loss against the reward model's, the phases."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_market import MARKET, NUM_CODES, NUM_LAYERS, catalogue_of, small_market
from tiny_log import random_batch

from ega_jax.baselines.cascade.hstu import HSTUConfig, hstu_phase
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig, peri_cr_phase
from ega_jax.baselines.cascade.stages import Stages
from ega_jax.baselines.cascade.tiger import tiger_config, tiger_phase
from ega_jax.baselines.cascade.two_tower import TwoTowerConfig, two_tower_phase
from ega_jax.baselines.settings import Settings
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.phases.reward import items_of
from ega_jax.reward.losses import feedback_loss
from ega_jax.training.loop import train
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics
from ega_jax.training.settings import LoggedSettings

GENERATOR = GeneratorConfig(
    num_codes=NUM_CODES, num_layers=NUM_LAYERS, num_slots=MARKET.num_slots,
    history_length=MARKET.history_length, width=8, num_heads=2, hidden=8, encoder_blocks=1,
    decoder_blocks=1,
)  # fmt: skip
SIZES = {"width": 8, "num_heads": 2, "hidden": 8, "dropout_rate": 0.0}
SETTINGS = LoggedSettings(
    batch_size=32, num_steps=40, learning_rate=1e-2, warmup_steps=2, weight_decay=0.0,
    checkpoint_every=40, log_every=10, evaluate_every=20,
)  # fmt: skip


def phases():
    dataset, _ = small_market()
    catalogue = catalogue_of(dataset)
    items = items_of(dataset, catalogue)
    sizes = lambda kind: kind(**SIZES, **GENERATOR.shared)
    towers = TwoTowerConfig(width=8, hidden=8, dropout_rate=0.0, **GENERATOR.shared)
    return {
        "two_tower": two_tower_phase(dataset, items, towers, SETTINGS, seed=0),
        "hstu": hstu_phase(dataset, items, sizes(HSTUConfig), SETTINGS, seed=0),
        "peri_cr": peri_cr_phase(dataset, items, sizes(PeriCRConfig), SETTINGS, seed=0),
        "tiger": tiger_phase(dataset, catalogue, tiger_config(GENERATOR), SETTINGS, 0, 0.1),
    }


def test_sizes_come_from_the_settings_and_where_shared_from_the_generator():
    changes = {"cascade.hstu.width": 24, "cascade.hstu.blocks": 3, "cascade.peri_cr.hidden": 7}
    changes["cascade.two_tower.width"] = 5
    pretraining = SimpleNamespace(generator_config=GENERATOR)
    stages = Stages(SimpleNamespace(pretraining=pretraining, settings=Settings().changed(changes)))
    for config in (stages.two_tower_config, stages.hstu_config, stages.peri_cr_config):
        assert config.shared == GENERATOR.shared
    assert (stages.hstu_config.width, stages.hstu_config.blocks) == (24, 3)
    assert (stages.peri_cr_config.width, stages.peri_cr_config.hidden) == (64, 7)
    assert (stages.two_tower_config.width, stages.two_tower_config.hidden) == (5, 64)
    assert stages.hstu_config.dropout_rate == stages.peri_cr_config.dropout_rate == 0.2


def test_the_loss_is_of_the_responses_that_are_predicted():
    batch, rng = random_batch(), np.random.default_rng(0)
    logits = {
        name: rng.normal(size=batch["shown_poi"].shape).astype(np.float32)
        for name in ("click_poi", "click_image", "convert")
    }
    whole, metrics = feedback_loss(logits, batch)
    parts = [feedback_loss({name: logit}, batch) for name, logit in logits.items()]
    assert sum(loss for loss, _ in parts) == pytest.approx(float(whole), rel=1e-5)
    for _, only in parts:
        ((name, value),) = only.items()
        assert value == pytest.approx(float(metrics[name]), rel=1e-5)


@pytest.mark.parametrize("name", ["hstu", "peri_cr", "tiger", "two_tower"])
def test_a_phase_learns_and_is_measured(name, tmp_path):
    phase = phases()[name]
    assert phase.name == name
    train(phase, workdir=tmp_path, config={}, mesh=data_mesh(jax.devices()[:1]))
    records = read_metrics(tmp_path / "metrics" / f"{name}.jsonl")
    losses = [record["loss"] for record in records]
    assert losses[-1] < 0.98 * losses[0]
    measured = {key for record in records for key in record if key.startswith("eval/")}
    responses = {"hstu": ("poi", "conversion"), "peri_cr": ("poi", "image"), "two_tower": ("poi",)}
    responses = responses.get(name, ())
    kinds = {f"eval/{kind}_{r}" for kind in ("auc", "logloss", "ece") for r in responses}
    assert measured == (
        kinds or {f"eval/{kind}@{k}" for kind in ("recall", "ndcg") for k in (5, 10)}
    )
