"""The parts of the benchmark that do not depend on how fast the machine is."""

import json
import sys

import pytest
from absl.testing import flagsaver

from ega_jax.errors import UserError
from experiments import benchmark
from experiments.benchmarks import data, generator, timing

PEER = """
import argparse, json
parser = argparse.ArgumentParser()
for name in ("batch", "enc", "dec", "beams", "items"):
    parser.add_argument(f"--{name}", type=int)
print("a line of chatter")
print(json.dumps(vars(parser.parse_args())))
"""


def test_the_peer_does_the_same_work(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    config = generator.config_of("30 codes", "float32")
    given = generator.run_peer(f"{sys.executable} {script}", config, batch=16)
    assert given == {"batch": 16, "enc": 96, "dec": 30, "beams": 64, "items": 1000}


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (f"{sys.executable} -c 'import no_such_torch'", "No module named 'no_such_torch'"),
        (f"{sys.executable} -c 'print(1 + 1, 2)'", "failed with 0: 2 2"),
        ("no-such-python torch_tiger.py", "cannot be started"),
    ],
)
def test_a_peer_that_fails_is_explained_in_one_line(peer, message):
    with pytest.raises(UserError, match=message) as raised:
        generator.run_peer(peer, generator.config_of("3 codes", "float32"), batch=1)
    assert "\n" not in str(raised.value)


def test_index_part_reports_both_sizes(capsys):
    data.measure_index(20_000)
    small, large = map(json.loads, capsys.readouterr().out.splitlines())
    assert (small["items"], large["items"]) == (10_000, 20_000)
    assert large["megabytes"] > small["megabytes"] > 0


@pytest.mark.parametrize("flag", ["parts", "auctions"])
def test_what_is_unknown_is_named_before_anything_is_measured(flag, capsys):
    chosen = {"parts": ["train"]} | {flag: ["lunch"]}
    with flagsaver.flagsaver(**chosen), pytest.raises(ValueError, match=f"no {flag[:-1]} lunch"):
        benchmark.main()
    assert not capsys.readouterr().out


@pytest.mark.parametrize("sizes", [["10", "1e6"], ["0"], ["-3"]])
def test_sizes_of_books_are_whole_numbers(sizes):
    with pytest.raises(UserError, match=f"--ads={sizes[-1]}"):
        benchmark.book_sizes(sizes)


def test_latencies_are_of_at_least_one_call_and_at_most_so_many():
    calls = []
    assert len(timing.latencies(lambda: calls.append(1), limit_s=0.0)) == 1
    assert len(calls) == 2  # The first is not timed.
    assert len(timing.latencies(lambda: None, limit_s=60.0, most=7)) == 7


def test_percentiles():
    found = timing.percentiles([0.001 * i for i in range(101)])
    assert found == pytest.approx({"p50_ms": 50.0, "p99_ms": 99.0, "calls": 101})


def test_lines_have_four_digits_and_no_nan(capsys):
    timing.emit({"part": "x", "ms": 1.23456, "share": float("nan"), "rows": 8})
    assert json.loads(capsys.readouterr().out) == {
        "part": "x",
        "ms": 1.235,
        "share": None,
        "rows": 8,
    }
