"""Data parts of `experiments.benchmark`: building the prefix index, simulating the market."""

import dataclasses
import tempfile
import time

import numpy as np

from ega_jax.data.market.config import SMALL
from ega_jax.data.market.logs import write_market
from ega_jax.quantization.prefix_index import catalogue_index, size_in_bytes
from experiments.benchmarks.timing import emit

W, C = 1024, 3


def measure_index(num_items: int) -> None:
    """Times building the index of a small and of a large random catalogue.

    Args:
      num_items: the number of items in the large catalogue.
    """
    for size in (10_000, num_items):
        codes = np.random.default_rng(0).integers(0, W, (size, C), dtype=np.int32)
        start = time.perf_counter()
        index = catalogue_index(codes, W)
        record = {"part": "index", "items": size, "build_seconds": time.perf_counter() - start}
        emit(record | {"megabytes": size_in_bytes(index) / 1e6})


def measure_market(num_sessions: int) -> None:
    """Times simulating and writing a market log with the sizes of `small`."""
    config = dataclasses.replace(SMALL, num_sessions=num_sessions)
    marks = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_market(
            config,
            f"{folder}/market",
            progress=lambda done, total: marks.append((done, time.perf_counter() - start)),
        )
    (first, warm), (last, total) = marks[0], marks[-1]
    rate = (last - first) / (total - warm) if last > first else last / total
    emit(
        {
            "part": "market",
            "sessions": last,
            "seconds": total,
            "sessions_per_s": rate,
            "seconds_per_million": warm + (1_000_000 - first) / rate,
        }
    )
