"""What is measured of a market beside its log, on one of 400 sessions."""

import dataclasses
import json

import pytest
from small_market import MARKET
from tiny_runs import tiny_config

from ega_jax.data.market.logs import write_market
from ega_jax.phases.pretraining import Pretraining
from ega_jax.systems import training_of
from ega_jax.training.mesh import data_mesh
from experiments.calibrations import observables, propensities, reward_models


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    write_market(MARKET, folder / "market")
    reward = {
        "num_steps": 6,
        "warmup_steps": 1,
        "batch_size": 8,
        "width": 8,
        "num_heads": 2,
        "hidden": 8,
    }
    settings = tiny_config(folder / "market", kind="kmeans", reward=reward)
    workdir = folder / "work"
    return training_of(Pretraining(settings, workdir, data_mesh()), workdir / "systems" / "ega")


def test_reward_models_have_intervals_and_an_excess_over_the_truth(run, monkeypatch):
    monkeypatch.setattr(reward_models, "SESSIONS", 40)
    report = reward_models.reward_models(run)
    for name in ("uniform_ratio", "uniform_ratio_weighted"):
        assert 0 < report[f"{name}_low"] < report[name] < report[f"{name}_high"]
    assert 0 < report["weighted_sessions"] < run.dataset.summary.num_rows
    assert report["logloss_excess_poi"] > 0


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
