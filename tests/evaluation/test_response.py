"""The reward model's report on a small market: what is moved, and what a perfect one would get."""

import jax
import numpy as np
import pytest
from small_market import MARKET, catalogue_of, small_market

from ega_jax.data.pipeline import eval_batches
from ega_jax.evaluation import response
from ega_jax.evaluation.response import SLATE
from ega_jax.phases.reward import items_of

K = MARKET.num_slots


@pytest.fixture(scope="module")
def market():
    """Batches of the last sessions, items and truth."""
    dataset, truth = small_market()
    batches = list(eval_batches(dataset, "test", batch_size=32, history_length=4))
    return [dict(b) for b in batches], items_of(dataset, catalogue_of(dataset)), truth


def evaluate(monkeypatch, market, predict, truth):
    batches, items, _ = market
    monkeypatch.setattr(response, "batch_predictor", lambda config, items: predict)
    return response.evaluate_response(None, None, items, batches, truth)


def true_predictor(truth, forge=lambda predictions: predictions):
    """A model that knows everything, and then says something else."""

    def predict(params, batch):
        session = np.maximum(batch["session"], 0)
        return forge(truth.responses(session, *(np.asarray(batch[name]) for name in SLATE)))

    return predict


def test_a_perfect_model_is_as_good_as_the_truth(monkeypatch, market):
    _, _, truth = market
    found = evaluate(monkeypatch, market, true_predictor(truth), truth)
    for name in [name for name in found if name.startswith("truth_")]:
        assert found[name.removeprefix("truth_")] == pytest.approx(found[name])
    assert found["clear_cases"] > 20
    assert found["direction"] == found["direction_swap"] == found["direction_replace"] == 1


def test_a_model_that_has_it_backwards_gets_no_direction(monkeypatch, market):
    _, _, truth = market
    inverse = lambda p: p.replace(click_poi=np.where(p.click_poi > 0, 1e-3 / p.click_poi, 0))
    found = evaluate(monkeypatch, market, true_predictor(truth, inverse), truth)
    assert found["direction"] == 0
    assert found["auc_poi"] < 0.5 < found["truth_auc_poi"]
    blind = lambda p: p.replace(click_poi=np.full(p.click_poi.shape, 0.1))
    found = evaluate(monkeypatch, market, true_predictor(truth, blind), truth)
    assert found["direction"] == 0, "no change is not a right change"


def test_without_a_truth_only_the_log_is_asked(monkeypatch, market):
    found = evaluate(monkeypatch, market, true_predictor(market[2]), None)
    assert len(found) == 9
    assert not [name for name in found if "truth" in name or "direction" in name]


def ragged(batch):
    """The same sessions with slates of 0 to K items."""
    cut = np.arange(K) >= np.arange(len(batch["shown_poi"]))[:, None] % (K + 1)
    empty = {"shown_poi": -1, "shown_creative": -1, "shown_is_ad": False}
    return batch | {name: np.where(cut, value, batch[name]) for name, value in empty.items()}


def test_a_swap_moves_two_items_with_all_that_is_theirs(market):
    batch = ragged(market[0][0])
    moved = response.swap(np.random.default_rng(0), batch)
    pairs = set()
    for row, before in enumerate(batch["shown_poi"]):
        after = moved.slate["shown_poi"][row]
        changed = np.flatnonzero(after != before)
        if (before >= 0).sum() < 2:
            assert not changed.size
            continue
        pairs.add(tuple(changed.tolist()))
        first, second = changed
        for name in SLATE:
            assert moved.slate[name][row, first] == batch[name][row, second]
            assert moved.slate[name][row, second] == batch[name][row, first]
        kept = [k for k in range(K) if before[k] >= 0 and k not in changed]
        assert np.flatnonzero(moved.kept[row]).tolist() == kept
    assert pairs == {(0, 1), (0, 2), (1, 2)}


def test_a_replacement_is_a_candidate_that_is_not_shown(market):
    (batch, *_), items, _ = market
    batch = ragged(batch)
    batch["item"] = np.where(np.arange(len(batch["item"]))[:, None] == 3, -1, batch["item"])
    moved = response.replace(np.random.default_rng(0), batch, items)
    creatives = np.asarray(items.catalogue.poi_creatives)
    slots = set()
    for row, before in enumerate(batch["shown_poi"]):
        after = moved.slate["shown_poi"][row]
        changed = np.flatnonzero(after != before)
        if not np.any(before >= 0) or row == 3:
            assert not changed.size
            assert not moved.kept[row].any()
            continue
        (slot,) = changed
        slots.add(int(slot))
        (place,) = np.flatnonzero(batch["item"][row] == after[slot])
        assert after[slot] not in before
        assert moved.slate["shown_is_ad"][row, slot] == batch["is_ad"][row, place]
        assert moved.slate["shown_creative"][row, slot] in creatives[after[slot]]
        kept = [k for k in range(K) if before[k] >= 0 and k != slot]
        assert np.flatnonzero(moved.kept[row]).tolist() == kept
    assert slots == set(range(K))


def test_agreement_by_a_loop():
    rng = np.random.default_rng(0)
    change, true = 0.2 * rng.normal(size=(2, 30, K))
    where = rng.random((30, K)) < 0.6
    right = clear = 0
    for ours, theirs, counts in zip(change.ravel(), true.ravel(), where.ravel(), strict=True):
        if counts and abs(theirs) > 0.1:
            clear += 1
            right += np.sign(ours) == np.sign(theirs)
    np.testing.assert_array_equal(response.agreement(change, true, where), [right, clear])


def test_relative_change_of_nothing_is_nothing():
    found = response.relative_change(np.array([0.0, 0.1, 0.1]), np.array([0.2, 0.12, 0.05]))
    np.testing.assert_allclose(found, [0.0, 0.2, -0.5])


def test_a_model_of_its_own_runs(market):
    """End to end with fresh parameters: every figure is a number."""
    from ega_jax.reward import model

    batches, items, truth = market
    config = model.RewardConfig(
        num_codes=4, num_layers=2, num_slots=K, history_length=4, width=8, num_heads=2, hidden=8
    )
    params = jax.jit(lambda key: model.init(key, config, items))(jax.random.key(0))
    found = response.evaluate_response(params, config, items, batches[:1], truth)
    assert np.isfinite(list(found.values())).all()
    assert found["logloss_poi"] > found["truth_logloss_poi"]
