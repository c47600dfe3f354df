"""From a dataset to a pre-trained generator in one workdir: results, restarts, kills, devices."""

import json
import shutil
import signal

import chex
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_runs
from tiny_runs import NUM_POIS, STEPS, forkserver, tiny_config

from ega_jax.evaluation.interest import creative_unigram
from ega_jax.phases.pretraining import Pretraining
from ega_jax.training.checkpoints import CheckpointMismatchError, ConfigMismatchError
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics
from experiments import evaluate, pretrain
from experiments.common import runs, workdirs

PHASES = ("rqvae_poi", "rqvae_creative", "generator")


def run_command(module, name, config, workdir):
    """Runs a command on a workdir, with flags at their defaults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdirs, name, lambda *_, **__: (config, workdir))
        module.main()


def files_of(workdir, folder):
    return {path: path.read_bytes() for path in (workdir / folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run of the command on an ad log: config, workdir."""
    root = tmp_path_factory.mktemp("ad_log")
    config = tiny_config(tiny_runs.write_ad_log(root / "data"))
    run_command(pretrain, "open_workdir", config, root / "run")
    return config, root / "run"


def params_of(config, workdir):
    return jax.device_get(Pretraining(config, workdir, data_mesh()).restore_generator())


def test_results_name_everything(finished):
    _, workdir = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results.keys() == {"tokenizer", "test", "seconds", "samples_per_second"}
    assert results["tokenizer"].keys() == {"poi", "creative"}
    for report in results["tokenizer"].values():
        assert {"usage", "perplexity", "r2", "collision_rate", "largest_leaf"} <= report.keys()
        assert len(report["usage"]) == 2
    figures = {f"{name}@{k}" for name in ("recall", "ndcg") for k in (5, 10)}
    figures |= {"nll_poi", "nll_creative", "nll_creative_unigram", "creative_mrr", "creative_top1"}
    assert results["test"].keys() == figures
    assert all(np.isfinite(value) for value in results["test"].values())
    assert 0 < results["test"]["nll_poi"] < 2 * 2 * np.log(4)
    assert results["samples_per_second"] > 0
    assert (workdir / "figures" / "generator.png").stat().st_size > 0


def test_metrics_and_evaluations_are_logged(finished):
    lines = read_metrics(finished[1] / "metrics" / "generator.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {"nll_poi", "nll_creative", "grad_norm"} <= lines[0].keys()
    evaluated = [line["step"] for line in lines if "eval/recall@10" in line]
    assert evaluated == [STEPS // 2, STEPS]


def test_again_is_the_same_without_work(finished):
    config, workdir = finished
    before = {name: files_of(workdir, name) for name in ("checkpoints", "tokenizers", "metrics")}
    results = json.loads((workdir / "results.json").read_text())
    run_command(pretrain, "open_workdir", config, workdir)
    for name, files in before.items():
        assert files_of(workdir, name) == files
    again = json.loads((workdir / "results.json").read_text())
    assert (again["test"], again["tokenizer"]) == (results["test"], results["tokenizer"])


def test_evaluate_measures_the_same(finished, capsys):
    config, workdir = finished
    path = workdir / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"test": {}}))
    run_command(evaluate, "find_workdir", config, workdir)
    found = json.loads(path.read_text())
    assert found["test"].keys() == results["test"].keys()
    for name, value in results["test"].items():
        np.testing.assert_allclose(found["test"][name], value, rtol=1e-6)
    assert found["tokenizer"] == results["tokenizer"]
    assert "test.recall@10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("generator.width", 16, r"params/begin: found float32\[8\], expected float32\[16\]"),
        (
            "tokenizer.num_codes",
            5,
            r"tokenizer/codebooks: found float32\[2, 4, 4\], expected float32\[2, 5, 4\]",
        ),
    ],
)
def test_a_checkpoint_of_another_shape_is_named(finished, field, value, message):
    config, workdir = finished
    other = config.changed({field: value})
    with pytest.raises(CheckpointMismatchError, match=message):
        Pretraining(other, workdir, data_mesh()).restore_generator()


def test_tokens_are_of_the_items_that_they_were_made_of(finished, tmp_path):
    config, workdir = finished
    folder = tiny_runs.write_ad_log(tmp_path / "moved")
    shutil.copytree(workdir / "tokenizers", tmp_path / "tokenizers")
    tokens_of = lambda path: (
        Pretraining(config.changed({"data.path": str(path)}), tmp_path, data_mesh()).tokens
    )
    codes = Pretraining(config, workdir, data_mesh()).tokens["poi"].codes
    np.testing.assert_array_equal(tokens_of(folder)["poi"].codes, codes)
    path = folder / "pois.parquet"
    table = pq.read_table(path)
    other = table["embedding"].take(np.arange(table.num_rows)[::-1])
    pq.write_table(table.set_column(1, "embedding", other), path)
    with pytest.raises(ConfigMismatchError, match=r"data\.path\.embeddings_crc32\.poi: found"):
        tokens_of(folder)


def test_a_workdir_without_generator_says_what_to_do(finished, tmp_path):
    config, workdir = finished
    shutil.copytree(workdir / "tokenizers", tmp_path / "tokenizers")
    with pytest.raises(FileNotFoundError, match=r"holds no generator: run experiments\.pretrain"):
        Pretraining(config, tmp_path, data_mesh()).restore_generator()


def test_nothing_is_built_on_a_generator_that_has_steps_to_go(finished, tmp_path):
    config, workdir = finished
    run = Pretraining(config, shutil.copytree(workdir, tmp_path / "run"), data_mesh())
    shutil.rmtree(run.workdir / "checkpoints" / "generator" / str(STEPS))
    assert not run.is_finished
    with pytest.raises(ValueError, match=rf"has {run.newest_step} of {STEPS} steps: run exper"):
        run.restore_generator()
    run_command(evaluate, "find_workdir", config, run.workdir)  # Of a stopped run too.
    again = runs.pretrained(config, run.workdir)
    chex.assert_trees_all_equal(again.restore_generator(), params_of(config, workdir))


def kill_points():
    """A random step of each phase, in the order in which a run comes by them."""
    rng = np.random.default_rng(0)
    return [(phase, int(rng.integers(1, STEPS))) for phase in PHASES]


def test_killed_and_resumed_is_as_never_stopped(finished, tmp_path):
    config, workdir = finished
    context = forkserver()
    for phase, step in kill_points():
        arguments = (config, str(tmp_path), phase, step)
        process = context.Process(target=tiny_runs.train_and_die, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (phase, step)
    resumed = Pretraining(config, tmp_path, data_mesh())
    chex.assert_trees_all_equal(
        jax.device_get(resumed.train_generator()), params_of(config, workdir)
    )
    undisturbed = Pretraining(config, workdir, data_mesh())
    for name, tokens in undisturbed.tokens.items():
        np.testing.assert_array_equal(resumed.tokens[name].codes, tokens.codes)


def test_four_devices_give_the_losses_of_one(finished, tmp_path):
    config, workdir = finished
    alone = Pretraining(config, tmp_path, data_mesh(jax.devices()[:1]))
    alone.train_generator()
    assert data_mesh().size == 4
    for phase in PHASES:
        one, four = (read_metrics(w / "metrics" / f"{phase}.jsonl") for w in (tmp_path, workdir))
        losses = [[line["loss"] for line in lines] for lines in (one, four)]
        assert len(losses[0]) > 0
        np.testing.assert_allclose(*losses, rtol=2e-3, err_msg=phase)


def test_public_sequences_without_creatives(tmp_path):
    """A folder without creatives, whole-catalogue retrieval, k-means and a disambiguation code."""
    config = tiny_config(
        tiny_runs.write_sequences(tmp_path / "data"),
        kind="kmeans",
        tokenizer={"disambiguate": True},
        data={"num_slots": 2},
    )
    run_command(pretrain, "open_workdir", config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tokenizer"].keys() == {"poi"}
    assert results["tokenizer"]["poi"]["collision_rate"] == 0
    assert results["test"]["nll_creative"] == 0
    assert "creative_mrr" not in results["test"]
    run = Pretraining(config, tmp_path / "run", data_mesh())
    assert run.generator_config.num_layers == 3
    assert len(np.unique(run.tokens["poi"].codes, axis=0)) == NUM_POIS
    config = config.changed({"data.num_slots": 0})  # As in the market's config.
    assert Pretraining(config, tmp_path / "run", data_mesh()).generator_config.num_slots == 1


def test_unigram_counts_the_codes_of_training_targets(finished):
    """From the log's file: the first 70 % of its rows, a click with weight 1, else .1."""
    config, workdir = finished
    run = Pretraining(config, workdir, data_mesh())
    log = pq.read_table(f"{config.data.path}/sessions/part-0.parquet").to_pydict()
    counts = np.ones((2, 4))
    for row in range(42):
        shown = zip(log["shown_creative"][row], log["click_poi"][row], strict=True)
        for creative, is_clicked in shown:
            for layer in range(2):
                code = run.tokens["creative"].codes[creative, layer]
                counts[layer, code] += 1.0 if is_clicked else 0.1
    expected = np.log(counts / counts.sum(1, keepdims=True))
    np.testing.assert_allclose(creative_unigram(run), expected, rtol=1e-5)
