"""Data parts of `experiments.benchmark`: speed of the prefix index and of the market."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.data.market.config import SMALL
from ega_jax.data.market.logs import write_market
from ega_jax.generation.bidding import allocation_log_probs
from ega_jax.generation.catalogue_candidates import catalogue_candidates
from ega_jax.quantization.prefix_index import CatalogueIndex, catalogue_index, size_in_bytes
from experiments.benchmarks.timing import emit, timed

W, C, S = 1024, 3, 64


def measure_index(num_items: int, rounds: int) -> None:
    """Times building the index of a small and a large random catalogue, and masking with both.

    Args:
      num_items: the number of items in the large catalogue.
      rounds: masking runs `20 * rounds` times; the median is reported.
    """
    sizes = (10_000, num_items)
    masks = {}
    for size in sizes:
        codes = np.random.default_rng(0).integers(0, W, (size, C), dtype=np.int32)
        start = time.perf_counter()
        index = catalogue_index(codes, W)
        built = time.perf_counter() - start
        emit(
            {
                "part": "index",
                "items": size,
                "build_seconds": built,
                "megabytes": size_in_bytes(index) / 1e6,
            }
        )
        masks[size] = mask_step(index)
    small, large = timed(list(masks.values()), 20 * rounds)
    emit(
        {
            "part": "masking",
            "items": list(sizes),
            "ms_per_step": [1e3 * small / C, 1e3 * large / C],
            "growth": large / small,
        }
    )


def mask_step(index: CatalogueIndex) -> Callable[[], Any]:
    """Returns a function that masks and ranks the options of 64 beams at every depth."""
    candidates = catalogue_candidates(index)
    rng = np.random.default_rng(1)
    nodes = [rng.integers(0, len(bounds) - 1, S, dtype=np.int32) for bounds in index.bounds[:-1]]
    logits = jnp.asarray(rng.normal(size=(S, W)), jnp.float32)

    @jax.jit
    def step(candidates, nodes, logits):
        best = []
        for depth, node in enumerate(nodes):
            options = candidates.options(depth, node, jnp.full((S, 1), -1))
            scores = jnp.take_along_axis(logits, options.code, axis=-1)
            log_z = allocation_log_probs(scores, options.bid, options.where, 1.0, 1.0)
            best.append(jax.lax.top_k(log_z.reshape(-1), S))
        return best

    return functools.partial(step, candidates, nodes, logits)


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
