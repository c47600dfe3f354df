"""Timing for the benchmarks: medians of alternating runs, and the machine's FLOP/s."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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


def matrix_product(dtype: str = "float32", size: int = 2048) -> Callable[[], float]:
    """Returns a function that measures the FLOP/s of a large matrix product."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    return lambda: 2 * size**3 / min(seconds(product, x, x) for _ in range(5))


def flops_of(compiled: jax.stages.Compiled) -> float:
    """Returns the floating-point operations of a call; a loop's body counts once."""
    return (compiled.cost_analysis() or {})["flops"]


def emit(record: dict[str, Any]) -> None:
    """Prints one JSON line, with numbers rounded to four digits."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}
    print(json.dumps(rounded), flush=True)
