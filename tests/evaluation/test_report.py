"""Results on disk, in a table, as curves."""

import json
import math
import subprocess
import sys

import pytest

from ega_jax.evaluation.report import (
    flatten,
    plot_curves,
    print_systems,
    print_table,
    read_results,
    write_results,
)

RESULTS = {"test": {"recall@5": 0.25}, "tokenizer": {"poi": {"usage": [1.0, 0.5]}}, "seconds": 3}


def test_results_are_added_to_those_there(tmp_path):
    write_results(tmp_path, {"test": {"recall@5": 0.1}, "validation": {"nll_poi": 2.0}})
    path = write_results(tmp_path, RESULTS)
    assert json.loads(path.read_text()) == RESULTS | {"validation": {"nll_poi": 2.0}}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_nested_results_of_others_stay_and_infinity_is_null(tmp_path):
    write_results(tmp_path, {"systems": {"a": {"psi": 0.1}}})
    path = write_results(tmp_path, {"systems": {"b": {"psi": float("inf")}}})
    assert json.loads(path.read_text()) == {"systems": {"a": {"psi": 0.1}, "b": {"psi": None}}}
    assert math.isnan(read_results(tmp_path)["systems"]["b"]["psi"])


def test_none_takes_a_key_out(tmp_path):
    write_results(tmp_path, {"systems": {"a": None}})
    assert read_results(tmp_path) == {"systems": {}}
    write_results(tmp_path, {"systems": {"a": {"psi": 0.1}, "b": {"psi": math.nan}}})
    write_results(tmp_path, {"systems": {"a": None, "c": None}})
    assert read_results(tmp_path)["systems"].keys() == {"b"}


def test_a_system_is_one_line_per_judge(capsys):
    scores = dict.fromkeys(
        ("rpm", "ctr_poi", "ctr_img", "ad_share", "psi", "psi_10", "psi_all"), 0.5
    )
    systems = {"ega": {"model": scores, "truth": scores | {"rpm": 123.4}, "psi_floor": 0.0125}}
    print_systems(systems, "market")
    lines = [line for line in capsys.readouterr().out.splitlines() if "ega" in line]
    assert [line.split("│")[2].strip() for line in lines] == ["model", "truth"]
    assert "123.4" in lines[1]
    assert "0.0125" in lines[1]


def test_results_that_are_not_json_leave_the_old_file(tmp_path):
    path = write_results(tmp_path, RESULTS)
    with pytest.raises(TypeError):
        write_results(tmp_path, {"test": object()})
    assert json.loads(path.read_text()) == RESULTS


def test_flatten():
    names = ["test.recall@5", "tokenizer.poi.usage", "seconds"]
    assert [name for name, _ in flatten(RESULTS)] == names


def test_table_shows_every_figure(capsys):
    print_table(RESULTS, title="a title")
    shown = capsys.readouterr().out
    for text in ("a title", "test.recall@5", "0.25", "tokenizer.poi.usage", "1  0.5", "seconds"):
        assert text in shown


def test_curves_are_drawn_with_and_without_evaluations(tmp_path):
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    lines = [{"step": s, "loss": 1.0 / s, "elapsed_seconds": 60.0 * s} for s in (1, 2, 3)]
    (metrics / "plain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines[-1] |= {"eval/recall@10": 0.1, "eval/nll_poi": 3.0}
    (metrics / "measured.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain, measured = plot_curves(tmp_path, "plain"), plot_curves(tmp_path, "measured")
    assert plain == tmp_path / "figures" / "plain.png"
    assert measured.stat().st_size > plain.stat().st_size, "one panel against three"


ADD = """
import pathlib, sys
from ega_jax.evaluation.report import write_results
for number in range(30):
    write_results(pathlib.Path(sys.argv[1]), {sys.argv[2]: {str(number): 1.0}})
"""


def test_two_processes_may_add_results_at_once(tmp_path):
    adding = [
        subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path), name]) for name in ("a", "b")
    ]
    assert [process.wait() for process in adding] == [0, 0]
    assert {name: len(found) for name, found in read_results(tmp_path).items()} == {
        "a": 30,
        "b": 30,
    }
