"""Workdirs and their settings: absolute paths, more steps, and older files."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny_runs
from absl.testing import flagsaver
from tiny_runs import STEPS, tiny_config

from ega_jax.errors import UserError
from ega_jax.phases.pretraining import Pretraining
from ega_jax.training.checkpoints import ConfigMismatchError, check_workdir, read_config
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics
from experiments.common import workdirs
from experiments.configs import market, retrieval


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir whose tiny generator has all its steps, and its settings."""
    root = tmp_path_factory.mktemp("trained")
    settings = tiny_config(tiny_runs.write_sequences(root / "data"), kind="kmeans")
    workdirs.bind_workdir(root / "run", settings)
    Pretraining(settings, root / "run", data_mesh()).train_generator()
    return settings, root / "run"


def with_steps(settings, num_steps):
    return settings.changed({"training.num_steps": num_steps})


def opened(settings, workdir):
    """What `experiments.pretrain` does with settings and a workdir."""
    free = settings.free("workdir")
    free += (workdirs.STEPS,) * workdirs.may_go_on(workdir, settings.training.num_steps)
    workdirs.bind_workdir(workdir, settings, free)
    return Pretraining(settings, workdir, data_mesh())


def test_relative_paths_of_data_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"data.path": "log", "data.market.sequences": "~/yelp"}
    found = workdirs.with_absolute_paths(market.settings().changed(given))
    assert found.data.path == str(tmp_path / "log")
    assert found.data.market.sequences == str(Path.home() / "yelp")
    assert workdirs.with_absolute_paths(market.settings()) == market.settings(), "empty is none"


def test_a_command_keeps_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "run"
    config = f"--config={tiny_runs.market.__file__}:tiny"
    arguments = [f"--workdir={workdir}", config, "--config.data.path=nowhere"]
    code, printed = tiny_runs.run_apart("experiments.pretrain", arguments, tmp_path)
    assert code == 1, "there is no such folder"
    assert f"{tmp_path}/nowhere" in printed
    assert read_config(workdir)["data"]["path"] == str(tmp_path / "nowhere")


def test_a_workdir_that_kept_a_relative_path_opens(tmp_path, monkeypatch):
    """A retrieval workdir is bound to its data; the file may hold the path as it was given."""
    monkeypatch.chdir(tmp_path)
    settings = retrieval.settings("beauty")
    check_workdir(tmp_path / "run", settings.to_dict())
    (tmp_path / "run" / "metrics.jsonl").touch()
    workdirs.bind_workdir(tmp_path / "run", workdirs.with_absolute_paths(settings))
    assert read_config(tmp_path / "run")["data"]["path"] == str(tmp_path / "data" / "beauty")
    with pytest.raises(ConfigMismatchError, match=r"data\.path"):
        workdirs.bind_workdir(tmp_path / "run", settings.changed({"data.path": "/other"}))


def test_a_finished_training_goes_on_with_more_steps(trained, tmp_path):
    settings, workdir = trained
    workdir = shutil.copytree(workdir, tmp_path / "run")
    run = opened(with_steps(settings, 2 * STEPS), workdir)
    assert not run.is_finished
    run.train_generator()
    assert run.is_finished
    lines = read_metrics(workdir / "metrics" / "generator.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 2 * STEPS + 1))
    assert read_config(workdir)["training"]["num_steps"] == 2 * STEPS


def test_the_schedule_is_that_of_all_steps(trained, tmp_path):
    """Going on is a step at the rate that the longer schedule has there: not at its end."""
    settings, workdir = trained
    workdir = shutil.copytree(workdir, tmp_path / "run")
    opened(with_steps(settings, 2 * STEPS), workdir).train_generator()
    lines = read_metrics(workdir / "metrics" / "generator.jsonl")
    last, first = (lines[place]["update_norm"] for place in (STEPS - 1, STEPS))
    assert first > 5 * last, "at the end of the shorter schedule steps were tiny"


def test_steps_are_not_taken_back(trained):
    settings, workdir = trained
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=rf"num_steps is 6, but .* was trained for {STEPS}: steps"):
        opened(with_steps(settings, 6), workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_systems_keep_their_generator(trained, tmp_path):
    settings, workdir = trained
    workdir = shutil.copytree(workdir, tmp_path / "run")
    for name in ("systems/ega", "systems/calm", "tuning/gr-0"):
        check_workdir(workdir / name, settings.to_dict())
    before = (workdir / "config.json").read_bytes()
    named = "systems/calm, systems/ega, tuning/gr-0 are built on the generator"
    with pytest.raises(UserError, match=named):
        opened(with_steps(settings, 2 * STEPS), workdir)
    assert (workdir / "config.json").read_bytes() == before
    assert opened(settings, workdir).is_finished, "as many steps as before are welcome"


def test_other_commands_take_no_other_steps(trained):
    settings, workdir = trained
    with pytest.raises(ConfigMismatchError, match=rf"num_steps: found {STEPS}, expected 24"):
        workdirs.bind_workdir(workdir, with_steps(settings, 24))


def test_the_world_yelp_needs_its_sequences(tmp_path):
    settings = market.settings("yelp_small")
    with pytest.raises(UserError, match=r"set config\.data\.market\.sequences to the folder"):
        workdirs.check_market_source(settings)
    workdirs.check_market_source(settings.changed({"data.market.sequences": str(tmp_path)}))


def test_a_workdir_of_fields_that_are_gone_names_them(tmp_path):
    config = market.settings().to_dict()
    config["generator"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused = pytest.raises(UserError, match=r"no config field config\.generator\.depth; valid")
    with flagsaver.flagsaver(workdir=str(tmp_path)), refused:
        workdirs.find_workdir()
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_folder_of_other_items_does_not_replace_the_right_one(trained, tmp_path):
    settings, workdir = trained
    other = shutil.copytree(settings.data.path, tmp_path / "other")
    items = pq.read_table(other / "items.parquet")
    flipped = items["embedding"].take(list(range(len(items)))[::-1])
    pq.write_table(items.set_column(1, "embedding", flipped), other / "items.parquet")
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(ConfigMismatchError, match="embeddings_crc32"):
        opened(settings.changed({"data.path": str(other)}), workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_a_mistyped_folder_does_not_replace_the_right_one(trained, tmp_path):
    settings, workdir = trained
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match="nowhere: the folder does not exist"):
        opened(settings.changed({"data.path": str(tmp_path / "nowhere")}), workdir)
    assert (workdir / "config.json").read_bytes() == before
