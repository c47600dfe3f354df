"""How long compilation takes, as the benchmark measures it."""

import json

import jax
import jax.numpy as jnp

from experiments.benchmarks import compilation
from experiments.benchmarks.compilation import compile_times, compiled, covered, no_cache


def test_time_in_several_intervals_counts_once():
    assert covered([]) == 0
    assert covered([(4.0, 5.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]) == 4.0


def test_only_compilation_counts_and_by_stage():
    double = jax.jit(lambda x: jnp.sin(x) * 2)
    with compile_times() as first:
        double(jnp.ones(3))
    with compile_times() as second:
        double(jnp.ones(3))
    assert set(first.stages) == {"trace_s", "lower_s", "xla_s"}
    assert all(seconds > 0 for seconds in first.stages.values())
    assert max(first.stages.values()) <= first.seconds <= sum(first.stages.values()) + 1e-6
    assert second.seconds == 0


def test_a_function_is_compiled_again_without_any_cache(tmp_path):
    calls = []

    @jax.jit
    def function(x):
        calls.append(1)
        return x + 1

    before = jax.config.values["jax_enable_compilation_cache"]
    with no_cache():
        assert not jax.config.values["jax_enable_compilation_cache"]
        for _ in range(2):
            assert compiled(lambda: function(jnp.ones(2))).stages["xla_s"] > 0
    assert len(calls) == 2
    assert jax.config.values["jax_enable_compilation_cache"] == before


def test_each_function_is_compared_with_the_reference(monkeypatch, capsys):
    double = jax.jit(lambda x: 2 * x)
    named = [("double", lambda: double(jnp.ones(2)))]
    monkeypatch.setattr(compilation, "functions", lambda shape: named)
    seconds = iter([4.0, 6.0])  # The reference's, then the function's.

    def timed(call):
        jax.block_until_ready(call())
        times = compilation.CompileTimes()
        times.spans["xla_s"].append((0.0, next(seconds)))
        return times

    monkeypatch.setattr(compilation, "compiled", timed)
    compilation.measure_compilation("tiny")
    line = {"part": "compile", "function": "double", "shape": "tiny", "seconds": 6.0}
    line |= {"relative": 1.5, "trace_s": 0.0, "lower_s": 0.0, "xla_s": 6.0}
    assert json.loads(capsys.readouterr().out) == line
