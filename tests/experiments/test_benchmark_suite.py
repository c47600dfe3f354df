"""The suite: every part ends with a line, whatever becomes of it."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from absl.testing import flagsaver

from ega_jax.errors import UserError
from ega_jax.training.interrupt import Interrupted
from experiments import benchmark
from experiments.benchmarks import accelerator, devices, suite
from experiments.benchmarks.suite import Part
from experiments.benchmarks.summary import summary
from experiments.benchmarks.timing import emit


def measures(value):
    """A part that measures, and chats."""
    emit({"part": "good", "value": value})
    print("chatter", file=sys.stderr)


def raises():
    """A part with a bug, after a measurement."""
    emit({"part": "early", "value": 1})
    raise RuntimeError("out of device memory")


def is_killed():
    """A part that the kernel kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def cannot_run():
    """A part that cannot run here."""
    raise UserError("no peer")


def hangs(started):
    """A part that never ends, nor does what it started."""
    child = subprocess.Popen(["sleep", "600"])
    started.write_text(str(child.pid))
    time.sleep(600)


def lines(folder):
    """The measurements and the parts' ends in a folder of results."""
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    ends = {record["part"]: record for record in records if "status" in record}
    return [record for record in records if "status" not in record], ends


def is_running(pid):
    """Whether a process runs; one that has ended may wait for its parent."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_no_part_stops_the_others(tmp_path, capsys):
    started = tmp_path / "started"
    parts = [
        Part("first", 1.0, functools.partial(measures, 7)),
        Part("raises", 1.0, raises),
        Part("killed", 1.0, is_killed),
        Part("cannot", 1.0, cannot_run),
        Part("silent", 1.0, functools.partial(os._exit, 0)),
        Part("unsendable", 1.0, lambda: None),
        Part("hangs", 0.04, functools.partial(hangs, started)),
        Part("last", 1.0, functools.partial(measures, 8)),
        Part("late", 0.0, functools.partial(measures, 9)),
    ]
    suite.run(parts, 60.0, tmp_path / "out")
    measured, ends = lines(tmp_path / "out")
    assert [record["value"] for record in measured] == [7, 1, 8]
    assert list(ends) == [part.name for part in parts]
    assert {name: end["status"] for name, end in ends.items()} == {
        "first": "ok",
        "raises": "failed",
        "killed": "failed",
        "cannot": "not run",
        "silent": "failed",
        "unsendable": "failed",
        "hangs": "timed out",
        "last": "ok",
        "late": "not run",
    }
    assert ends["raises"]["reason"] == "RuntimeError: out of device memory"
    assert ends["raises"]["output"][-1] == ends["raises"]["reason"]
    assert ends["killed"]["reason"] == "killed by SIGKILL"
    assert ends["cannot"]["reason"] == "no peer"
    assert "without a result" in ends["silent"]["reason"]
    assert "did not start" in ends["unsendable"]["reason"]
    assert ends["late"]["reason"] == "no time was left"
    assert 0.0 <= ends["first"]["compile_seconds"] <= ends["first"]["seconds"]
    assert not is_running(int(started.read_text()))
    assert (tmp_path / "out" / "logs" / "first.log").read_text() == "chatter\n"
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "summary.md").read_text() in printed
    assert "raises: failed" in printed


def test_a_stop_keeps_what_is_measured_and_ends_the_running_part(tmp_path):
    started = tmp_path / "started"
    parts = [
        Part("first", 1.0, functools.partial(measures, 7)),
        Part("hangs", 1.0, functools.partial(hangs, started)),
        Part("never", 1.0, functools.partial(measures, 8)),
    ]

    def stop():
        while not started.exists() or not started.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted):
        suite.run(parts, 60.0, tmp_path / "out")
    measured, ends = lines(tmp_path / "out")
    assert [record["value"] for record in measured] == [7]
    assert [end["status"] for end in ends.values()] == ["ok", "stopped"]
    assert not is_running(int(started.read_text()))
    assert "stopped" in (tmp_path / "out" / "summary.md").read_text()


def test_earlier_results_are_not_overwritten(tmp_path):
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="another folder"):
        suite.run([], 1.0, tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == "{}\n"


def test_the_whole_suite_ends_in_its_time(tmp_path, capsys):
    budget, out = 3.0, tmp_path / "out"
    start = time.monotonic()
    with flagsaver.flagsaver(suite="accelerator", sizes="tiny", budget_s=budget, out=str(out)):
        benchmark.main()
    assert time.monotonic() - start < 30  # Starting and ending parts takes time too.
    _, ends = lines(out)
    assert list(ends) == list(accelerator.PARTS)
    printed = capsys.readouterr().out
    for name, end in ends.items():
        assert end["status"] == "ok" or end["reason"], name
        assert f"{name}: {end['status']}" in printed


@pytest.mark.slow
def test_every_part_of_the_suite_runs(tmp_path):
    peer = tmp_path / "peer.py"
    peer.write_text('print(\'{"samples_per_s": 1.0, "beam_ms_per_request": 1e6}\')')
    flags = {"peer": f"{sys.executable} {peer}", "budget_s": 3000.0, "out": str(tmp_path / "out")}
    with flagsaver.flagsaver(suite="accelerator", sizes="tiny", **flags):
        benchmark.main()
    measured, ends = lines(tmp_path / "out")
    assert {end["status"] for end in ends.values()} == {"ok"}, ends
    both = [line for line in measured if line.get("command") == "both"]
    assert both[0]["seconds"] > both[0]["compile_seconds"] > 0
    assert all(line["times_faster"] > 1 for line in measured if "times_faster" in line)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"parts": ["lunch"]}, "no part lunch; there are device, quick_start, train"),
        ({"parts": ["index"]}, "no part index"),  # A part, but none of the suite.
        ({"out": None}, "set --out"),
    ],
)
def test_a_mistake_is_named_before_anything_is_measured(chosen, message, tmp_path):
    given = {"suite": "accelerator", "out": str(tmp_path / "out")} | chosen
    with flagsaver.flagsaver(**given), pytest.raises(UserError, match=message):
        benchmark.main()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_peaks_are_known_by_device(kind, tflops):
    assert devices.peak_flops(kind) == (tflops and tflops * 1e12)


def test_the_summary_has_a_table_of_parts_and_one_for_each_kind_of_measurement():
    text = summary(
        [
            {"part": "device", "device": "x", "versions": {"jax": "1", "flax": "2"}},
            {"part": "device", "status": "ok", "seconds": 1.0, "compile_seconds": 0.5},
            {"part": "train", "batch": 1, "samples_per_s": 2.0},
            {"part": "train", "batch": 2, "share_of_peak": None},
            {"part": "train", "status": "failed", "seconds": 3.0, "reason": "a | b"},
        ]
    )
    assert text.splitlines() == [
        "## Parts",
        "",
        "| part | status | seconds | compile_seconds | reason |",
        "| --- | --- | --- | --- | --- |",
        "| device | ok | 1.0 | 0.5 |  |",
        "| train | failed | 3.0 |  | a \\| b |",
        "",
        "## device",
        "",
        "- device: x",
        "- versions: jax 1, flax 2",
        "",
        "## train",
        "",
        "| batch | samples_per_s | share_of_peak |",
        "| --- | --- | --- |",
        "| 1 | 2.0 |  |",
        "| 2 |  |  |",
    ]
