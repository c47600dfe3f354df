"""`--workdir=DIR` alone continues with the config that DIR was made with."""

import json
import sys

import pytest
from absl import flags
from ml_collections import config_flags
from tiny_runs import tiny_config

from ega_jax.baselines.settings import Settings
from ega_jax.training.checkpoints import check_workdir
from experiments.common import command, workdirs
from experiments.configs import market, saved


def parsed(*arguments):
    """The config that a command gets from its command line."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("system", "ega", "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["a command", *arguments])  # Read for the fields it changes.
        values(command._config_first(sys.argv))
    return json.loads(json.dumps(values.config.to_dict()))


def as_saved(settings):
    return json.loads(json.dumps(settings.to_dict()))


@pytest.fixture
def workdir(tmp_path):
    """One of a config unlike the default, and that config."""
    config = tiny_config("data", allocation={"beta": 3.5})
    check_workdir(tmp_path / "run", config.to_dict())
    return tmp_path / "run", as_saved(config)


def test_a_workdir_alone_takes_its_config(workdir):
    folder, config = workdir
    assert parsed(f"--workdir={folder}") == config
    assert config["allocation"]["beta"] == 3.5
    assert config["generator"]["width"] == 8


def test_what_one_system_is_trained_with_is_no_default_of_the_next(workdir):
    folder, config = workdir
    moved = Settings.from_dict(config).changed({"data.path": "/elsewhere"})
    workdirs.bind_workdir(folder, moved.changed({"allocation.beta": 8.0}))
    assert parsed(f"--workdir={folder}") == as_saved(moved)


def test_fields_of_the_command_line_change_it(workdir):
    folder, config = workdir
    found = parsed(
        "--config.allocation.beta=8", f"--workdir={folder}", "--config.payment.hidden=(4,2)"
    )
    assert (found["allocation"].pop("beta"), config["allocation"].pop("beta")) == (8.0, 3.5)
    assert found["payment"].pop("hidden") == [4, 2]
    del config["payment"]["hidden"]
    assert found == config


def test_a_config_file_goes_before_the_saved_one(workdir):
    folder, _ = workdir
    path = f"{command.CONFIGS / 'market.py'}:tiny"
    expected = as_saved(market.settings("tiny"))
    assert parsed(f"--workdir={folder}", f"--config={path}") == expected


def test_a_new_workdir_takes_the_default(tmp_path):
    expected = as_saved(market.settings("tiny"))
    assert parsed(f"--workdir={tmp_path / 'new'}") == expected


def test_an_unknown_field_is_answered_with_those_of_the_saved_config(workdir):
    folder, _ = workdir
    message = command._unknown_fields(["", f"--workdir={folder}", "--config.allocation.gamma=1"])
    assert message.startswith("no config field config.allocation.gamma; valid fields:")
    assert "config.allocation.beta" in message
    assert not command._unknown_fields(["", f"--workdir={folder}", "--config.allocation.beta=1"])


def test_no_workdir_says_what_to_do(tmp_path):
    for name in ("", str(tmp_path / "nothing")):
        with pytest.raises(ValueError, match=r"is not a workdir: run experiments\.pretrain first"):
            saved.get_config(name)


def test_each_system_keeps_its_own(workdir):
    """Another system's changes, which the workdir's file holds last, are not taken for it."""
    folder, _ = workdir
    calm = tiny_config("data", allocation={"beta": 9.0})
    check_workdir(folder / "systems" / "calm", calm.to_dict())
    calm = parsed(f"--workdir={folder}", "--system=calm")
    assert calm["allocation"]["beta"] == 9.0
    assert parsed(f"--workdir={folder}")["allocation"]["beta"] == 3.5
