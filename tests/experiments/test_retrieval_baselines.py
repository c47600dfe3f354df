"""The command on tiny sequences: its results, again without work, and what it refuses."""

import json

import pytest
import tiny_runs

from ega_jax.setting import WORKDIR
from ega_jax.training.checkpoints import ConfigMismatchError, check_workdir
from ega_jax.training.metrics import read_metrics
from experiments import retrieval_baselines
from experiments.common import workdirs
from experiments.configs import retrieval

STEPS = 6
TINY = {
    "data": {"history_length": 4},
    "sasrec": {"width": 8, "hidden": 8, "blocks": 1},
    "optimizer": {"warmup_steps": 2},
    "training": {
        "batch_size": 8,
        "num_steps": STEPS,
        "checkpoint_every": 4,
        "log_every": 1,
        "evaluate_every": 3,
    },
    "evaluation": {"batch_size": 8, "validation_rows": 8},
}


def run(folder, workdir, **groups):
    settings = retrieval.settings().changed(TINY)
    settings = settings.changed({"data": {"path": str(folder)}, **groups})

    def open_workdir(kind):
        check_workdir(workdir, settings.to_dict(), settings.free(WORKDIR))
        return settings, workdir

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdirs, "open_workdir", open_workdir)
        retrieval_baselines.main()
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run: the data, the workdir and its results."""
    root = tmp_path_factory.mktemp("retrieval")
    folder = tiny_runs.write_sequences(root / "data")
    return folder, root / "run", run(folder, root / "run")


def test_results_name_every_system_and_figure(finished):
    _, _, results = finished
    assert results.keys() == {"retrieval"}
    assert results["retrieval"]["test"].keys() == {"popularity", "item_knn", "sasrec"}
    names = {f"{measure}@{k}" for measure in ("recall", "ndcg") for k in (5, 10)}
    names |= {f"unseen_{name}" for name in names}
    for figures in results["retrieval"]["test"].values():
        assert figures.keys() == names
        assert all(0 <= value <= 1 for value in figures.values())


def test_neighbours_beat_popularity_on_walks(finished):
    """Users walk along the items: who took these took the next one."""
    figures = finished[2]["retrieval"]["test"]
    assert figures["item_knn"]["unseen_recall@5"] > figures["popularity"]["unseen_recall@5"]


def test_validation_is_measured_during_training(finished):
    lines = read_metrics(finished[1] / "metrics" / "sasrec.jsonl")
    assert [line["step"] for line in lines if "eval/recall@10" in line] == [STEPS // 2, STEPS]


def test_again_is_the_same_without_work(finished, capsys):
    folder, workdir, results = finished
    metrics = (workdir / "metrics" / "sasrec.jsonl").read_bytes()
    assert run(folder, workdir) == results
    assert (workdir / "metrics" / "sasrec.jsonl").read_bytes() == metrics
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("popularity", "item_knn", "sasrec", "unseen_ndcg@10"))


def test_other_sequences_take_another_workdir(finished, tmp_path):
    _, workdir, _ = finished
    with pytest.raises(ConfigMismatchError, match=r"data\.path"):
        run(tiny_runs.write_sequences(tmp_path / "data"), workdir)


def test_an_ad_log_is_refused(tmp_path):
    folder = tiny_runs.write_ad_log(tmp_path / "data")
    with pytest.raises(ValueError, match="holds an ad log; retrieval baselines take sequences"):
        run(folder, tmp_path)


@pytest.mark.parametrize("variant", retrieval.VARIANTS)
def test_neighbours_count_no_items_beyond_the_history(variant):
    settings = retrieval.settings(variant)
    assert settings.data.history_length >= settings.item_knn.num_last
