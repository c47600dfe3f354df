"""The command that adds items: what it takes from the command line, and what it prints."""

import json
import shutil

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_runs
from tiny_runs import NUM_POIS, tiny_config

from ega_jax.phases.pretraining import Pretraining
from ega_jax.training.checkpoints import check_workdir, read_config
from ega_jax.training.mesh import data_mesh


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A workdir with tokens of sequences, and the folder of its data."""
    root = tmp_path_factory.mktemp("tokenized")
    settings = tiny_config(tiny_runs.write_sequences(root / "data"), kind="kmeans")
    check_workdir(root / "run", settings.to_dict())
    with jax.numpy_rank_promotion("allow"):
        _ = Pretraining(settings, root / "run", data_mesh()).tokens
    return root / "run", root / "data"


def run(arguments, tmp_path):
    """Exit code and all that the command prints."""
    return tiny_runs.run_apart("experiments.extend", arguments, tmp_path)


def test_an_item_that_is_appended_gets_codes(tokenized, tmp_path, monkeypatch):
    workdir, data = tokenized
    workdir = shutil.copytree(workdir, tmp_path / "run")
    folder = shutil.copytree(data, tmp_path / "more")
    table = pq.read_table(folder / "items.parquet")
    new = table.slice(0, 1).set_column(0, "item_id", pa.array([NUM_POIS], pa.int32()))
    pq.write_table(pa.concat_tables([table, new]), folder / "items.parquet")
    monkeypatch.chdir(tmp_path)
    code, printed = run([f"--workdir={workdir}", "--config.data.path=more"], tmp_path)
    assert code == 0, printed
    assert f"items added: 1 of kind poi; {workdir} now belongs to {folder}" in printed
    assert read_config(workdir)["data"]["path"] == str(folder)


@pytest.mark.parametrize(
    "fields", [[], ["--config.data.path=x", "--config.seed=3"], ["--config.data.path="]]
)
def test_no_other_field_is_changed(tokenized, tmp_path, fields):
    workdir, _ = tokenized
    before = json.dumps(read_config(workdir))
    code, printed = run([f"--workdir={workdir}", *fields], tmp_path)
    assert code == 1
    assert "error: experiments.extend changes the data alone: give --config.data.path=" in printed
    assert json.dumps(read_config(workdir)) == before


def test_what_is_no_workdir_is_refused(tmp_path):
    code, printed = run([f"--workdir={tmp_path / 'no'}", "--config.data.path=x"], tmp_path)
    assert code == 1
    assert "is not a workdir: run experiments.pretrain first" in printed
