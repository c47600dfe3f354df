"""The trials: as many for each system, of fields that exist; the winner by the judge alone."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from small_market import MARKET
from tiny_runs import REWARD, Flag, tiny_config

from ega_jax.data.market.logs import write_market
from ega_jax.errors import UserError
from ega_jax.training.files import read_json
from ega_jax.training.loop import NonFiniteLossError
from experiments import tune
from experiments.common import measuring
from experiments.common.measuring import Sessions
from experiments.common.protocol import TUNING_MARKET, Market, read_own_record
from experiments.common.runs import changed
from experiments.configs import market

LEVERS = {"alpha": (0.6,), "kappa": (0.0, 4.0)}


def point(value, ctr_poi):
    return {judge: {"value": value, "ctr_poi": ctr_poi} for judge in ("judge", "truth")}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Trials that are measured by a table: value and clicks by system and changes."""
    found = {
        ("mca", "defaults"): [point(10.0, 0.05), point(8.0, 0.07)],
        ("mca", "cascade.cga.learning_rate=0.01"): [point(13.0, 0.049)],
        ("gr", "defaults"): [point(12.0, 0.04), point(9.0, 0.06)],
        ("gr", "one_rec.strength=0.5"): [point(30.0, 0.045), point(31.0, 0.03)],
        ("gr", "alignment.learning_rate=0.0001"): [point(11.0, 0.051)],
    }
    made = []

    def measured(_, system, changes, judge):
        made.append((system, tune.title_of(changes)))
        if made[-1] not in found:
            raise NonFiniteLossError("the loss is nan at step 3")
        return found[made[-1]]

    monkeypatch.setattr(tune, "frontier_of", measured)
    monkeypatch.setattr(tune, "judge_of", lambda _: None)
    monkeypatch.setattr(tune, "_ASKED_BY", Flag("a person"))
    place = Market(TUNING_MARKET, market.settings("tiny"), tmp_path, tmp_path, Sessions(8, 1, 1))
    for changes in ({}, {"one_rec.strength": 0.5}, {"alignment.learning_rate": 1e-4}):
        tune.try_out(place, "gr", changes)
    return place, made


def test_each_system_has_as_many_trials():
    assert {len(trials) for trials in tune.TRIALS.values()} == {4}
    for trials in tune.TRIALS.values():
        assert len({tune.title_of(trial) for trial in trials}) == len(trials)
    assert tune.DEFAULTS in tune.TRIALS[tune.REFERENCE]


def test_trials_change_fields_that_exist():
    config = market.settings("tiny")
    for trials in tune.TRIALS.values():
        found = [changed(config, trial) for trial in trials]
        assert len(set(found)) == len(trials)


def test_a_change_of_no_field_is_refused():
    with pytest.raises(UserError, match=r"no config field config\.cascade\.num_recaled; valid"):
        changed(market.settings("tiny"), {"cascade.num_recaled": 4})


def test_trials_are_valued_at_the_clicks_of_the_reference(asked):
    place, made = asked
    found = tune.recorded(place.results, place.settings.name, "gr")
    records = {tune.title_of(record["changes"]): record for record in found}
    assert records["defaults"]["judge"] == pytest.approx(10.5)
    assert records["one_rec.strength=0.5"]["judge"] is None, "it has fewer clicks"
    assert records["alignment.learning_rate=0.0001"]["judge"] == pytest.approx(11.0)
    assert records["defaults"]["asked_by"] == "a person"
    assert made.count(("mca", "defaults")) == 1


def test_a_system_without_levers_counts_by_its_own_point(asked):
    place, _ = asked
    assert tune.try_out(place, "mca", {"cascade.cga.learning_rate": 1e-2})["judge"] == 13.0


def test_a_trial_that_fails_is_recorded(asked, capsys):
    place, made = asked
    failing = {"one_rec.strength": 0.9}
    assert tune.try_out(place, "gr", failing)["failed"] == "the loss is nan at step 3"
    count = len(made)
    records = tune.recorded(place.results, place.settings.name, "gr")
    assert len(tune.best(records, 4)) == 3, "those that failed are not made again"
    tune.print_trials(records, "gr")
    assert "failed" in capsys.readouterr().out
    assert tune.try_out(place, "gr", failing)["failed"]
    assert len(made) == count


def test_a_judge_that_fails_is_no_failure_of_a_trial(asked, monkeypatch):
    def failing(_):
        raise NonFiniteLossError("the loss is nan at step 9")

    place, _ = asked
    monkeypatch.setattr(tune, "judge_of", failing)
    trial = {"one_rec.strength": 0.7}
    with pytest.raises(NonFiniteLossError):
        tune.try_out(place, "gr", trial)
    assert not tune.record_path(place.results, place.settings.name, "gr", trial).exists()


def test_a_record_of_other_sessions_is_named(asked):
    place, _ = asked
    other = dataclasses.replace(place, sessions=Sessions(16, 1, 1))
    with pytest.raises(UserError, match=r"has asked\.value 8, not 16"):
        tune.try_out(other, "gr", {})


def test_the_trials_of_the_repository_are_those_of_the_present_settings():
    """Else `--best_of` would refuse them, or mix trials of different settings."""
    paths = sorted(Path("experiments/results/trials").glob("market-tiny-*.json"))
    assert len(paths) == 12
    for path in paths:
        known = read_json(path)
        sessions = Sessions(**known["asked"])
        place = Market(TUNING_MARKET, market.settings("tiny"), Path(), Path(), sessions)
        asked = place.asked(tune.settings_of(known["system"], known["changes"]))
        assert read_own_record(path, asked) == known


def test_a_recorded_trial_is_not_made_again(asked):
    place, made = asked
    before = list(made)
    assert tune.try_out(place, "gr", {})["judge"] == pytest.approx(10.5)
    assert made == before


def test_the_best_by_the_judge_are_made_again(asked, monkeypatch, capsys):
    place, _ = asked
    records = tune.recorded(place.results, place.settings.name, "gr")
    assert tune.best(records, 2) == [{"alignment.learning_rate": 1e-4}, {}]
    tune.print_trials(records, "gr")
    (marked,) = [line for line in capsys.readouterr().out.splitlines() if "*" in line]
    assert "alignment.learning_rate=0.0001" in marked
    monkeypatch.setattr(tune, "_BEST_OF", Flag("market-huge"))
    monkeypatch.setattr(tune, "_RESULTS", Flag("results"))
    with pytest.raises(UserError, match="--best_of=market-huge: there is no trial of it"):
        tune.best([], 2)


def test_what_cannot_be_tuned_is_refused_before_a_workdir_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "_BEST_OF", Flag("market-huge"))
    monkeypatch.setattr(tune, "_RESULTS", Flag(str(tmp_path)))
    monkeypatch.setattr(tune, "_SYSTEMS", Flag(["mca"]))
    with pytest.raises(UserError, match="--best_of=market-huge: there is no trial of it"):
        tune.check(market.settings("small"))
    with pytest.raises(UserError, match=r"config\.data\.path: tuning makes the market"):
        tune.check(market.settings("small").changed({"data.path": "log"}))


@pytest.mark.slow
def test_a_trial_is_judged_by_a_model_that_no_system_sees(tmp_path, monkeypatch):
    write_market(MARKET, tmp_path / "log")
    monkeypatch.setattr(measuring, "FRONTIER", LEVERS)
    sizes = {"width": 8, "hidden": 8, "num_heads": 2, "blocks": 1, "batch_size": 16, "num_steps": 8}
    monkeypatch.setattr(tune, "LARGE", sizes)
    settings = tiny_config(
        tmp_path / "log",
        kind="kmeans",
        reward=REWARD,
        allocation={"num_beams": 2},
        alignment={"num_steps": 0},
    )
    place = Market(TUNING_MARKET, settings, tmp_path / "work", tmp_path, Sessions(8, 1, 1))
    found = tune.frontier_of(place, "ega", {"allocation.alpha": 1.2}, tune.judge_of(place))
    assert [p["lever"] for p in found] == ["own", "alpha", "kappa", "kappa"]
    for each in found:
        assert each.keys() == {"lever", "setting", "truth", "judge"}
        assert math.isfinite(each["judge"]["value"])
    own = found[0]
    assert own["truth"]["ctr_poi"] != own["judge"]["ctr_poi"]
    assert own["judge"]["ad_share"] == own["truth"]["ad_share"]
    config = json.loads((tmp_path / "work" / "market-100" / "judge" / "config.json").read_text())
    assert config["reward"]["width"] == 8
    assert not (tmp_path / "work" / "market-100" / "systems").exists(), "tables use none of it"
