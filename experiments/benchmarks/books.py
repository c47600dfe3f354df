"""Book parts of `experiments.benchmark`: building large ad books and changing their bids.

JSON lines: `{"part": "book_build", "ads": N, "seconds": x, "resident_mb": r, "peak_mb": p}` and
`{"part": "book_update", "ads": N, "changed": m, "ms": x}`.
"""

import gc
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.errors import UserError
from ega_jax.generation.book_ledger import BookLedger
from experiments.benchmarks.timing import emit, seconds

W, C, K = 1024, 3, 6
CHANGED = (1_000, 100_000)  # Bids of one update, besides all of them.


def book_sizes(named: Sequence[str]) -> list[int]:
    """Reads the sizes of books.

    Raises:
      UserError: one is no positive whole number.
    """
    if wrong := [size for size in named if not size.isdecimal() or int(size) < 1]:
        raise UserError(f"--ads={','.join(wrong)}: sizes of books are positive whole numbers")
    return [int(size) for size in named]


def measure_books(ads: Sequence[int], rounds: int) -> None:
    """Times building books of random codes, and changing 1,000, 100,000 and all bids.

    Each size runs in a fresh process, so that its memory is measured alone. `resident_mb` is what
    the ledger and its book add; on a GPU, the book is not part of it. `peak_mb` is the most that
    the whole process used, with Python, JAX and the input. Linux only.

    Args:
      ads: sizes of the books.
      rounds: changes of each number of bids; the median is reported. The first, which compiles, is
        left out.
    """
    for size in ads:
        process = multiprocessing.get_context("spawn").Process(target=_measure, args=(size, rounds))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"measuring {size} ads ended with exit code {process.exitcode}")


def _measure(size: int, rounds: int) -> None:
    """Measures one size in this process."""
    # The parent may hold most of the accelerator's memory.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    rng = np.random.default_rng(0)
    codes = rng.integers(0, W, (size, C), dtype=np.int32)
    poi, bid = rng.permutation(size).astype(np.int32), rng.random(size, np.float32)
    jnp.ones(1).block_until_ready()
    before, start = _resident_mb(), time.perf_counter()
    ledger = BookLedger(poi, bid, [0, size], codes, W, num_slots=K)
    jax.block_until_ready(ledger.book)
    built = time.perf_counter() - start
    gc.collect()
    record = {"part": "book_build", "ads": size, "seconds": built}
    emit(record | {"resident_mb": _resident_mb() - before, "peak_mb": _peak_mb()})
    for changed in (*(m for m in CHANGED if m < size), size):
        times = [_change(ledger, changed, size, rng) for _ in range(rounds + 1)]
        ms = 1e3 * statistics.median(times[1:])
        emit({"part": "book_update", "ads": size, "changed": changed, "ms": ms})


def _change(ledger: BookLedger, changed: int, size: int, rng: np.random.Generator) -> float:
    """Gives random ads new bids and returns the seconds it takes."""
    bid = rng.random(changed, np.float32)
    if changed == size:
        return seconds(lambda: (ledger.replace(bid), ledger.book))
    ads = rng.choice(size, changed, replace=False)
    return seconds(lambda: (ledger.update(ads, bid), ledger.book))


def _resident_mb() -> float:
    """Memory that the process uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _peak_mb() -> float:
    """The most memory that the process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
