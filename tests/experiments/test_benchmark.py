"""The parts of the benchmark that do not depend on how fast the machine is."""

import json
import sys

import pytest
from absl.testing import flagsaver

from experiments import benchmark

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
    model = benchmark.Model(history_length=32, num_slots=10)
    with flagsaver.flagsaver(peer=f"{sys.executable} {script}", batch=16):
        given = benchmark.run_peer(model.config)
    assert given == {"batch": 16, "enc": 96, "dec": 30, "beams": 64, "items": 1000}


def test_index_part_reports_both_sizes(capsys):
    benchmark.measure_index(20_000, rounds=1)
    small, large, masking = map(json.loads, capsys.readouterr().out.splitlines())
    assert (small["items"], large["items"]) == (10_000, 20_000)
    assert large["megabytes"] > small["megabytes"] > 0
    assert masking["growth"] == pytest.approx(
        masking["ms_per_step"][1] / masking["ms_per_step"][0], rel=0.01
    )


@pytest.mark.parametrize("flag", ["parts", "auctions"])
def test_what_is_unknown_is_named_before_anything_is_measured(flag, capsys):
    chosen = {"parts": ["train"]} | {flag: ["lunch"]}
    with flagsaver.flagsaver(**chosen), pytest.raises(ValueError, match=f"no {flag[:-1]} lunch"):
        benchmark.main()
    assert not capsys.readouterr().out
