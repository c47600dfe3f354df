"""Serving of an exported mechanism: p50 and p99 by batch size."""

import tempfile
import time

from ega_jax import serving
from experiments.benchmarks.auction import BATCHES, Auction, Shape
from experiments.benchmarks.timing import emit, latencies, percentiles

RULES = ("gsp", "threshold")  # Without and with another search.
PLATFORMS = ("cpu", "cuda", "tpu")


def measure_exported(
    name: str, shape: Shape, limit_s: float = 5.0, batch_sizes: tuple[int, ...] = BATCHES
) -> None:
    """Exports random models of one shape, loads them and times single calls.

    Args:
      name: what the shape is called.
      shape: sizes of the models and of the requests.
      limit_s: no call of a rule and batch size starts after so many seconds.
      batch_sizes: the exported batch sizes.
    """
    auction = Auction(shape)
    mechanism = auction.mechanism()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        mechanism.export(folder, batch_sizes, PLATFORMS, num_candidates=shape.num_candidates)
        exported_s = time.perf_counter() - start
        served = serving.load(folder)
        loaded_s = time.perf_counter() - start - exported_s
    part = {"part": "exported", "shape": name}
    emit(part | {"functions": len(batch_sizes), "export_s": exported_s, "load_s": loaded_s})
    for rows in batch_sizes:
        request = auction.requests(rows)
        start = time.perf_counter()
        served.allocate(request)
        first_s = time.perf_counter() - start
        for rule in RULES:
            times = latencies(lambda r=request, by=rule: served.allocate(r, by), limit_s)
            found = {"rule": rule, "batch": rows, "first_s": first_s} | percentiles(times)
            emit(part | found)
