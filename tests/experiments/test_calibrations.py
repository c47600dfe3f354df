"""What is measured of a market beside its log, on one of 400 sessions."""

import dataclasses
import json

import jax
import pytest
from small_market import MARKET
from tiny_runs import REWARD, tiny_config

from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.logs import write_market
from ega_jax.phases.pretraining import Pretraining
from ega_jax.systems import training_of
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics
from experiments import decomposition
from experiments.calibrations import observables, propensities, reward_models, served_slates


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    write_market(MARKET, folder / "market")
    settings = tiny_config(
        folder / "market",
        kind="kmeans",
        reward=REWARD,
        allocation={"num_beams": 2},
        alignment={"num_steps": 0},
        payment={"heads": ()},
        auction={"rule": "gsp", "num_served": 64},
    )
    workdir = folder / "work"
    return training_of(Pretraining(settings, workdir, data_mesh()), workdir / "systems" / "ega")


def test_reward_models_have_intervals_and_an_excess_over_the_truth(run, monkeypatch):
    monkeypatch.setattr(reward_models, "SESSIONS", 40)
    report = reward_models.reward_models(run)
    for name in ("uniform_ratio", "logged_ratio", "uniform_ratio_weighted"):
        assert 0 < report[f"{name}_low"] < report[name] < report[f"{name}_high"]
    assert 0 < report["weighted_sessions"] < run.dataset.summary.num_rows
    assert report["logloss_excess_poi"] > 0


def test_a_large_model_learns_from_fresh_sessions_and_is_restored(run, monkeypatch):
    sizes = {"width": 8, "hidden": 8, "num_heads": 2, "blocks": 1, "batch_size": 16, "num_steps": 8}
    monkeypatch.setattr(reward_models, "LARGE", sizes)
    assert reward_models.trained_large_model(run) is None
    report = reward_models.large_reward_model(run)
    assert report["large_sessions"] == 16 * 8
    assert report["logloss_excess_large"] > 0
    assert reward_models.large_reward_model(run) == report
    metrics = run.pretraining.workdir / "calibration" / "large" / "metrics" / "reward.jsonl"
    assert read_metrics(metrics)[-1]["step"] == 8
    params, config = reward_models.trained_large_model(run)
    assert jax.tree.leaves(params)
    assert config.width == 8
    monkeypatch.setattr(reward_models, "LARGE", sizes | {"num_steps": 9})
    assert reward_models.trained_large_model(run) is None, "a training that is not finished"


def test_a_decomposition_sees_what_the_large_model_sees(run, monkeypatch, capsys):
    run.pretraining.train_generator()
    truth = Truth.load(run.pretraining.folder)
    monkeypatch.setattr(decomposition, "trained_large_model", lambda run: None)
    blind = decomposition.measure([run], truth, 16)["ega"]
    assert "--parts=large" in capsys.readouterr().out
    trained = run.reward, run.reward_config
    monkeypatch.setattr(decomposition, "trained_large_model", lambda run: trained)
    found = decomposition.measure([run], truth, 16)["ega"]
    assert list(found) == ["attainable", "placed", "shown", "paid", "visible", "menu"]
    assert found.keys() - blind.keys() == {"visible"}
    for name in ("shown", "menu"):
        assert found[name]["currency"] == pytest.approx(blind[name]["currency"])
    value = lambda name: found[name]["currency"]
    assert value("shown") <= value("menu") <= value("attainable")
    assert 0 < value("visible") <= value("attainable")


def test_served_slates_are_beside_the_truth_and_in_the_log(run):
    run.pretraining.train_generator()
    report = served_slates.served_slates({"ega": run})
    low, ratio, high = (report[f"served_ratio{end}"]["ega"] for end in ("_low", "", "_high"))
    assert 0 < low < ratio < high
    shares = report["overlap_by_slots"]["ega"]
    assert 1 > shares[0] > shares[-1] == report["overlap"]["ega"] > 0
    assert len(shares) == MARKET.num_slots


def test_recall_keeps_more_of_a_larger_share(run, monkeypatch):
    monkeypatch.setattr(observables, "FITTED", 40)
    monkeypatch.setattr(observables, "JUDGED", 40)
    report = observables.observables(run)
    for view in ("history", "context", "both"):
        kept = list(report[f"recall_value_{view}"].values())
        assert kept == sorted(kept)
        assert 0 < kept[0] < kept[-1] <= 1
        assert report[f"utility_r2_{view}"] < 1
    assert report["recall_value"] == report["recall_value_both"]


def test_markets_whose_interval_holds_the_truth_are_counted():
    config = dataclasses.replace(MARKET, explore=0.5)
    estimate, true = propensities.uniform_ctr(config)
    count = propensities.covered(config, range(1))
    assert json.dumps(count) == str(int(estimate.low <= true <= estimate.high))
