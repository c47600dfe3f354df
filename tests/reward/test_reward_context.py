"""The context of a request as an input of the reward model, and weights of sessions in its loss."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_reward import CONFIG, ITEMS, B, K, init_params, random_batch

from ega_jax.reward import model
from ega_jax.reward.losses import feedback_loss, reward_loss
from ega_jax.reward.weighting import WeightingSettings, effective_size, session_weights
from ega_jax.types import ContextScale, organic_pois

SCALE = ContextScale(mean=(10.0, -3.0), deviation=(4.0, 0.5))
WITH = dataclasses.replace(CONFIG, context=SCALE)


def contexts(seed=5):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal((10.0, -3.0), (4.0, 0.5), (B, 2)))


def full_batch():
    batch = random_batch()
    return batch | {"shown_poi": batch["item"][:, :K].clip(0), "context": contexts()}


def predict(params, batch, config=WITH):
    request = batch["history_poi"], batch["history_creative"], organic_pois(batch)
    memory = model.encode(params, config, ITEMS, *request, batch.get("context"))
    shown = batch["shown_poi"], batch["shown_creative"], batch["shown_is_ad"]
    found = model.predict(params, config, ITEMS, memory, *shown)
    return np.stack([found.click_poi, found.click_image, found.convert])


@pytest.fixture(scope="module")
def params():
    return init_params(WITH)


def test_without_a_context_the_parameters_stay():
    fresh = lambda config: jax.jit(lambda key: model.init(key, config, ITEMS))(jax.random.key(0))
    before, after = fresh(CONFIG), fresh(WITH)
    assert after.keys() - before.keys() == {"context", "place", "context_likeness"}
    wider = {"inputs"}  # It also reads the similarity to the context.
    for name in before.keys() - wider:
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
    batch = full_batch()
    ignoring = predict(before, batch, CONFIG)
    del batch["context"]
    np.testing.assert_array_equal(predict(before, batch, CONFIG), ignoring)


def test_predictions_follow_it_request_by_request(params):
    batch = full_batch()
    changed = batch["context"].copy()
    changed[2] += 1.0
    gap = np.abs(predict(params, batch) - predict(params, batch | {"context": changed}))
    assert (gap[:, 2].max(axis=-1) > 1e-4).all()
    np.testing.assert_allclose(np.delete(gap, 2, axis=1), 0, atol=1e-6)


def test_it_changes_items_differently(params):
    """Its effect on the log-odds is no constant: the model compares it with the item."""
    batch = full_batch() | {"shown_creative": np.full((B, K), -1)}
    batch |= {"shown_is_ad": np.zeros((B, K), bool)}
    alone = dataclasses.replace(WITH, permutation_aware=False)
    odds = lambda batch: np.log(1 / predict(params, batch, alone)[0] - 1)
    effect = odds(batch | {"context": batch["context"] + 1.0}) - odds(batch)
    assert np.ptp(effect, axis=1).min() > 1e-4


def test_a_request_serves_many_slates(params):
    batch = full_batch()
    one = {name: values[0] for name, values in batch.items()}
    slates = {name: batch[name] for name in ("shown_poi", "shown_creative", "shown_is_ad")}
    each = [predict(params, one | {n: x[row] for n, x in slates.items()}) for row in range(B)]
    np.testing.assert_allclose(
        predict(params, one | slates), np.stack(each, 1), rtol=1e-4, atol=1e-6
    )


def test_a_missing_context_is_an_error(params):
    batch = full_batch()
    del batch["context"]
    with pytest.raises(ValueError, match="reads a context of 2 values"):
        predict(params, batch)


def test_weights_multiply_the_losses_of_their_sessions():
    rng = np.random.default_rng(0)
    batch = random_batch()
    logits = {
        name: np.float32(rng.normal(size=(B, K)))
        for name in ("click_poi", "click_image", "convert")
    }
    weight = rng.uniform(0, 2, B)
    found, _ = feedback_loss(logits, batch, weight)
    shown = (batch["shown_poi"] >= 0).sum(axis=1)
    of_row = lambda row: feedback_loss(
        {name: logit[row] for name, logit in logits.items()},
        {name: values[row] for name, values in batch.items()},
    )[0]
    expected = sum(weight[row] * of_row(row) * shown[row] for row in range(B)) / shown.sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_reward_loss_weighs_by_propensity():
    batch = random_batch()
    rng = np.random.default_rng(0)
    batch["propensity"] = np.float32(rng.uniform(0.1, 1.0, (B, K)))
    weights = session_weights(lambda: iter([batch["propensity"]]), WeightingSettings(1.0, 3.0))
    assert weights is not None
    params, key = init_params(), jax.random.key(0)
    plain = reward_loss(CONFIG, ITEMS)
    weighed, (metrics, _) = reward_loss(CONFIG, ITEMS, weights)(params, (), batch, key)
    weight = np.asarray(weights(batch["propensity"]))
    shown = (batch["shown_poi"] >= 0).sum(axis=1)
    of_row = lambda row: plain(
        params, (), {name: values[row : row + 1] for name, values in batch.items()}, key
    )[0]
    expected = sum(weight[row] * of_row(row) * shown[row] for row in range(B)) / shown.sum()
    assert float(weighed) == pytest.approx(float(expected), rel=1e-4)
    share = float(effective_size(weight)) / B
    assert float(metrics["effective_share"]) == pytest.approx(share, rel=1e-5)
