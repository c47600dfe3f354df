"""What a user meets on a wrong command line: one message that names the culprit, nothing spoilt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs
from tiny_runs import run_apart as run
from tiny_runs import tiny_config

from ega_jax.data.tables import DataError
from ega_jax.errors import UserError
from ega_jax.training.checkpoints import (
    CheckpointMismatchError,
    ConfigMismatchError,
    check_workdir,
)
from ega_jax.training.loop import NonFiniteLossError
from experiments.common import command

PRETRAIN, EVALUATE = "experiments.pretrain", "experiments.evaluate"


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["--config.training.num_step=3"],
            [
                "no config field config.training.num_step; valid fields:",
                "config.training.num_steps",
            ],
        ),
        (
            ["--config.colour=3", "--config.seed=1"],
            ["no config field config.colour; valid fields:", "config.data.market.size"],
        ),
        (
            ["--config=experiments/configs/market.py:huge"],
            ["no variant 'huge'; valid variants: tiny, small, yelp_small, large"],
        ),
        (
            ["--config.seed=1", "--config=experiments/configs/sequences.py:huge"],
            ["no variant 'huge'; valid variants: ", "beauty, yelp, movies"],
        ),
        (
            ["--config=market.py"],
            ["no config file market.py; there are", "experiments/configs/market.py"],
        ),
        (["--config.training.num_steps=ten"], ["config.training.num_steps=ten", "invalid literal"]),
        (["--steps=3"], ["Unknown command line flag 'steps'"]),
    ],
)
def test_wrong_flags_are_named_with_the_valid_ones(tmp_path, arguments, messages):
    workdir = tmp_path / "run"
    code, printed = run(PRETRAIN, [*arguments, f"--workdir={workdir}"], tmp_path)
    assert code == 2
    assert printed.startswith("error: ")
    for message in messages:
        assert message in printed
    assert "Traceback" not in printed
    assert not workdir.exists()


def break_dataset(how, folder):
    """Spoils an ad log; returns what the message must name."""
    if how == "missing folder":
        return f"error: {folder}/nowhere: the folder does not exist"
    if how == "missing file":
        (folder / "creatives.parquet").unlink()
        return f"error: {folder}/creatives.parquet: the file does not exist"
    tiny_runs.spoil(folder / "pois.parquet", 5)
    return f"error: {folder}/pois.parquet, column 'embedding', row 5: "


@pytest.mark.parametrize("how", ["missing folder", "missing file", "not a number"])
def test_a_broken_dataset_is_named_before_any_training(tmp_path, how):
    data, workdir = tiny_runs.write_ad_log(tmp_path / "data"), tmp_path / "run"
    message = break_dataset(how, data)
    path = data / "nowhere" if how == "missing folder" else data
    arguments = [f"--config.data.path={path}", f"--workdir={workdir}"]
    code, printed = run(PRETRAIN, arguments, tmp_path)
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed
    assert contents(workdir) == {"config.json"}
    json.loads((workdir / "config.json").read_text())


def test_a_value_out_of_range_makes_no_workdir(tmp_path):
    arguments = ["--config.auction.num_sessions=0", f"--workdir={tmp_path / 'run'}"]
    code, printed = run("experiments.auction_align", arguments, tmp_path)
    assert code == 1
    assert printed == "error: config.auction.num_sessions is 0: it must be at least 1\n"
    assert contents(tmp_path) == {"printed.txt"}


@pytest.mark.parametrize(
    ("module", "config", "missing"),
    [
        ("experiments.retrieval_baselines", "market.py:tiny", "item_knn, sasrec"),
        (PRETRAIN, "retrieval.py:beauty", "tokenizer, generator, reward, "),
        ("experiments.tables", "retrieval.py", "tokenizer, generator, reward, "),
    ],
)
def test_a_config_of_another_command_is_refused(tmp_path, module, config, missing):
    workdir = tmp_path / "run"
    arguments = [f"--config=experiments/configs/{config}", f"--workdir={workdir}"]
    code, printed = run(module, arguments, tmp_path)
    assert code == 1
    assert f"has no fields for this command ({missing}" in printed
    assert not workdir.exists()


def test_no_market_is_made_for_an_auction_without_a_generator(tmp_path):
    workdir = tmp_path / "run"
    code, printed = run("experiments.auction_align", [f"--workdir={workdir}"], tmp_path)
    assert code == 1
    assert f"{workdir} holds no generator: run experiments.pretrain with it first" in printed
    assert contents(workdir) == {"config.json"}


def test_a_workdir_of_another_config_names_field_found_and_expected(tmp_path):
    workdir = tmp_path / "run"
    check_workdir(workdir, tiny_config("data").to_dict())
    (workdir / "metrics.jsonl").touch()
    before = (workdir / "config.json").read_bytes()
    tiny = f"--config={Path(tiny_runs.market.__file__)}:tiny"
    code, printed = run(PRETRAIN, [f"--workdir={workdir}", tiny], tmp_path)
    assert code == 1
    assert f"error: {workdir} was created with another config" in printed
    assert "generator.width: found 8, expected 64" in printed
    assert "data.path" not in printed, "where the data lies may change"
    assert "Traceback" not in printed
    assert contents(workdir) == {"config.json", "metrics.jsonl"}
    assert (workdir / "config.json").read_bytes() == before


def test_evaluating_what_is_no_workdir_says_what_to_do(tmp_path):
    code, printed = run(EVALUATE, [f"--workdir={tmp_path / 'nothing'}"], tmp_path)
    assert code == 1
    assert printed.startswith(f"error: {tmp_path}/nothing is not a workdir: run experiments.pretra")
    assert contents(tmp_path) == {"printed.txt"}


@pytest.mark.parametrize(
    "given", ["--config=experiments/configs/market.py:small", "--config.seed=1"]
)
def test_a_config_that_would_not_be_read_is_refused(tmp_path, given):
    code, printed = run(
        "experiments.reward_control", ["--workdir", tmp_path, *given.split("=")], tmp_path
    )
    assert code == 2
    assert printed == f"error: {given}: this command takes no config; a workdir has its own\n"


def test_a_value_may_follow_its_flag_and_a_switch_takes_none():
    argv = ["prog", "--workdir", "a", "--config.allocation.bid_free", "--config", "b", "--sessions"]
    expected = ["--workdir=a", "--config.allocation.bid_free", "--config=b", "--sessions"]
    assert command._joined(argv) == ["prog", *expected]


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (PRETRAIN, ["--config", "--workdir", "--config.field=value", "market.py:tiny"]),
        (EVALUATE, ["--workdir", "--split", "--num_beams", "--system", "without training"]),
        ("experiments.sweep", ["--workdir", "--alphas", "--system", "without it, ega"]),
    ],
)
def test_help_shows_every_flag_of_the_command(module, shown):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False
    )
    for word in shown:
        assert word in done.stdout
    assert ("--config:" in done.stdout) == ("--config" in shown)
    assert not done.stderr


@pytest.mark.parametrize(
    ("how", "code", "shown"),
    [
        ("user", 1, "error: column 'bid': not a number\n"),
        ("bug", 1, "ValueError: shapes (3,) and (4,)"),
        ("import", 1, "ImportError: no module"),
    ],
)
def test_a_mistake_is_one_line_and_a_bug_shows_its_traceback(tmp_path, how, code, shown):
    found, printed = run("failing_command", [f"--how={how}"], tmp_path)
    assert found == code
    assert shown in printed
    assert ("Traceback" in printed) == (how != "user")


def test_errors_that_a_user_can_mend_are_user_errors():
    assert set(command.EXPLAINED) == {
        UserError, NonFiniteLossError, FileNotFoundError, FileExistsError,
        NotADirectoryError, IsADirectoryError, PermissionError,
    }  # fmt: skip
    for kind in (DataError, CheckpointMismatchError, ConfigMismatchError):
        assert issubclass(kind, UserError)


def test_a_field_may_stand_before_the_config(tmp_path):
    folder = tiny_runs.write_sequences(tmp_path / "data")
    config = f"--config={Path(tiny_runs.market.__file__).with_name('retrieval.py')}"
    arguments = [f"--config.data.path={folder}", config]
    code, printed = run("experiments.validate", arguments, tmp_path)
    assert code == 0, printed
    assert f"{folder}: valid" in printed


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    code, printed = run(PRETRAIN, [f"--workdir={tmp_path / 'file' / 'run'}"], tmp_path)
    assert code == 1
    assert f"{tmp_path}/file" in printed
    assert "Traceback" not in printed
