"""The reward phase on a small log: what the model sees, that it learns, how it is measured."""

import jax
import numpy as np
import pytest
from small_market import MARKET, NUM_CODES, NUM_LAYERS, catalogue_of, small_market

from ega_jax.data.pipeline import eval_batches
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.phases import reward
from ega_jax.phases.logged import NAMES, report
from ega_jax.phases.settings import RewardPhaseSettings
from ega_jax.reward import calibration
from ega_jax.reward.model import Predictions, RewardConfig
from ega_jax.reward.network import RewardSettings
from ega_jax.setting import part_of
from ega_jax.training.loop import train
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics

GENERATOR = GeneratorConfig(
    num_codes=NUM_CODES, num_layers=NUM_LAYERS, num_slots=MARKET.num_slots,
    history_length=MARKET.history_length, width=64, num_heads=8,
)  # fmt: skip
SETTINGS = RewardPhaseSettings(
    width=8, num_heads=2, hidden=8, batch_size=32, num_steps=40, learning_rate=1e-2,
    warmup_steps=2, weight_decay=0.0, checkpoint_every=20, log_every=10, evaluate_every=20,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


def the_phase():
    dataset, _ = small_market()
    items = reward.items_of(dataset, catalogue_of(dataset))
    config = RewardConfig(**part_of(SETTINGS, RewardSettings), **GENERATOR.shared)
    return reward.reward_phase(dataset, items, config, SETTINGS, seed=0)


def test_embeddings_are_standardised_feature_by_feature():
    embedding = np.random.default_rng(0).normal(3.0, [1.0, 5.0, 0.0], (40, 3)).astype(np.float32)
    found = reward.standardise(embedding)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), [1, 1, 0], atol=1e-5)
    ratio = found[:, 1] / (embedding[:, 1] - embedding[:, 1].mean())
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_it_learns_and_is_measured_on_the_way(tmp_path):
    phase = the_phase()
    before = phase.evaluate(jax.jit(phase.init)())
    state = train(phase, workdir=tmp_path, config={}, mesh=data_mesh(jax.devices()[:1]))
    after = phase.evaluate(state)
    assert set(after) == {
        f"{measure}_{response}"
        for measure in ("auc", "logloss", "ece")
        for response in ("poi", "image", "conversion")
    }
    assert after["logloss_poi"] < 0.97 * before["logloss_poi"]
    assert after["ece_poi"] < before["ece_poi"]
    records = read_metrics(tmp_path / "metrics" / "reward.jsonl")
    losses = [record["loss"] for record in records]
    assert losses[-1] < losses[0]
    evaluated = [record["eval/logloss_poi"] for record in records if "eval/logloss_poi" in record]
    assert len(evaluated) == 2
    assert evaluated[-1] == pytest.approx(after["logloss_poi"], rel=1e-5)


def test_figures_are_of_filled_slots_and_conversions_of_clicked_ones():
    dataset, _ = small_market()
    batches = list(eval_batches(dataset, "test", batch_size=32, history_length=4))
    assert np.any(np.asarray(batches[-1]["shown_poi"])[:, 0] < 0), "the last has blank rows"
    rng = np.random.default_rng(0)
    drawn = lambda: rng.random((32, MARKET.num_slots))
    predictions = [Predictions(drawn(), drawn(), drawn(), states=None) for _ in batches]
    pairs = {name: [] for name in NAMES}
    for prediction, batch in zip(predictions, batches, strict=True):
        for row, slot in zip(*np.nonzero(np.asarray(batch["shown_poi"]) >= 0), strict=True):
            for name, kept in pairs.items():
                if name != "convert" or batch["click_poi"][row, slot]:
                    kept.append((getattr(prediction, name)[row, slot], batch[name][row, slot]))
    found = report(lambda _, batch: vars(predictions.pop(0)), None, batches)
    for name, kept in pairs.items():
        assert len(kept) > 1
        for measure, value in calibration.report(*map(np.array, zip(*kept, strict=True))).items():
            assert found[f"{measure}_{NAMES[name]}"] == pytest.approx(value), measure
