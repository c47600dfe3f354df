"""Timing for the benchmarks: medians of alternating runs, and the machine's FLOP/s."""

import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def seconds(function: Callable, *arguments: Any) -> float:
    """Returns the seconds until the result of a call is ready."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def timed(functions: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Returns the median seconds of each function; functions alternate, after a warm-up run."""
    for function in functions:
        jax.block_until_ready(function())
    times = [[seconds(function) for function in functions] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def latencies(function: Callable[[], Any], limit_s: float, most: int = 300) -> list[float]:
    """Returns the seconds of each call, after a warm-up call.

    Args:
      function: what is called.
      limit_s: no call starts later than this many seconds after the first; one is always made.
      most: the largest number of calls.
    """
    jax.block_until_ready(function())
    start, times = time.perf_counter(), []
    while not times or (len(times) < most and time.perf_counter() - start < limit_s):
        times.append(seconds(function))
    return times


def percentiles(times: list[float]) -> dict[str, float]:
    """Returns the median and the 99th percentile of seconds, in milliseconds, and their number."""
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99), "calls": len(times)}


def matrix_product(dtype: str = "float32", size: int = 2048) -> Callable[[], float]:
    """Returns a function that measures the FLOP/s of a large matrix product."""
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)  # Zeros and ones run faster.
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    return lambda: 2 * size**3 / min(seconds(product, x, x) for _ in range(5))


def emit(record: dict[str, Any]) -> None:
    """Prints one JSON line, with numbers rounded to four digits; NaN is `null`."""
    print(json.dumps({name: _rounded(value) for name, value in record.items()}), flush=True)


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else float(f"{value:.4g}")
