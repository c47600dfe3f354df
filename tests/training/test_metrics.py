"""The meter's averages, the writer's files, and the progress lines."""

import io
import json

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ega_jax.training import metrics, progress
from ega_jax.training.metrics import Meter, MetricsWriter, read_metrics
from ega_jax.training.progress import ProgressReport


def test_meter_averages_the_steps_and_starts_over():
    meter = Meter()
    for loss in (1.0, 2.0, 6.0):
        meter.add({"loss": jnp.asarray(loss)}, samples=4)
    assert meter.summary()["loss"] == 3.0
    meter.add({"loss": jnp.asarray(5.0)}, samples=4)
    assert meter.summary()["loss"] == 5.0


def test_meter_separates_waiting_and_pauses_from_work(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 4.0, 10.0, 14.0, 20.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    meter = Meter()  # at 0 s.
    with meter.waiting():  # from 1 s to 3 s.
        pass
    with meter.paused():  # from 4 s to 10 s.
        pass
    meter.add({"loss": jnp.asarray(1.0)}, samples=24)
    summary = meter.summary()  # at 14 s, so over 14 - 6 = 8 s.
    assert summary == {"loss": 1.0, "samples_per_second": 3.0, "data_wait_share": 0.25}


def test_writer_appends_lines_and_replaces_what_is_not_finite(tmp_path):
    writer = MetricsWriter(tmp_path, "toy", step=0)
    writer.write(1, {"loss": 0.5, "auc": np.nan})
    writer.write(2, {"loss": np.inf, "auc": 1.0})
    writer.close()
    lines = (tmp_path / "metrics" / "toy.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=int) for line in lines] == [
        {"step": 1, "loss": 0.5, "auc": None},
        {"step": 2, "loss": None, "auc": 1.0},
    ]
    assert list((tmp_path / "tensorboard" / "toy").glob("events.*"))


def test_writer_drops_later_and_broken_lines(tmp_path):
    path = tmp_path / "metrics" / "toy.jsonl"
    path.parent.mkdir()
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    MetricsWriter(tmp_path, "toy", step=2).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    assert [p.name for p in path.parent.iterdir()] == ["toy.jsonl"]


def progress_text(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, soft_wrap=True)
    with ProgressReport("toy", 10, 50, console) as report:
        for step in (20, 30, 40, 50):
            report.update(step, {"loss": 1.25, "samples_per_second": 640.0})
    return console.file.getvalue()


def test_progress_without_a_terminal_is_plain_and_sparse():
    first, last = progress_text(terminal=False).splitlines()
    assert first.startswith("toy  20/50  loss 1.2500  640 samples/s  -:--:-- left")
    assert last.startswith("toy  50/50  loss 1.2500  640 samples/s  0:00:00 left")


def test_the_time_left_is_told_from_the_speed_of_late(monkeypatch):
    now = iter([3600, 3602, 3604])  # The first steps took an hour to compile.
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1e9)
    console = Console(file=io.StringIO(), force_terminal=False, width=100, soft_wrap=True)
    with ProgressReport("toy", 0, 50, console) as report:
        monkeypatch.setattr(report._bar, "get_time", lambda: next(now))
        for step in (10, 20, 30):
            report.count(step, 50)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[-2] for line in lines] == ["-:--:--", "0:00:06", "0:00:04"]


def test_progress_on_a_terminal_is_a_bar():
    text = progress_text(terminal=True)
    assert "50/50" in text
    assert "━" in text
