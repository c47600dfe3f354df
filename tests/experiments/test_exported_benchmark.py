"""The benchmark of exported mechanisms reports each rule."""

import json

from experiments.benchmarks.auction import Shape
from experiments.benchmarks.exported import RULES, measure_exported

SHAPE = Shape(
    num_codes=16,
    num_slots=3,
    history_length=4,
    num_candidates=8,
    num_beams=4,
    width=16,
    hidden=16,
    blocks=1,
    reward_width=8,
)


def test_each_rule_is_timed(capsys):
    measure_exported("least", SHAPE, limit_s=0.0, batch_sizes=(2,))
    first, *lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["functions"] == 1
    assert [(x["batch"], x["rule"]) for x in lines] == [(2, rule) for rule in RULES]
    for line in lines:
        assert line["p99_ms"] >= line["p50_ms"] > 0
        assert line["calls"] == 1
