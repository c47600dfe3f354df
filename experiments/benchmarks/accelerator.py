"""The suite `accelerator`: what a GPU or TPU does in a few minutes, the most valuable first."""

import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from ega_jax.errors import UserError
from ega_jax.evaluation.flops import flops_of
from experiments.benchmarks.auction import Auction
from experiments.benchmarks.book_search import measure_book_search
from experiments.benchmarks.books import measure_books
from experiments.benchmarks.compilation import measure_compilation
from experiments.benchmarks.devices import description, peak_flops
from experiments.benchmarks.generator import SHAPES as PEER_SHAPES
from experiments.benchmarks.generator import Model, measure_generator
from experiments.benchmarks.quick_start import measure_quick_start
from experiments.benchmarks.sizes import DTYPE, SIZES, Sizes
from experiments.benchmarks.suite import Part
from experiments.benchmarks.timing import emit, latencies, matrix_product, percentiles

RULES = ("gsp", "threshold")  # Without and with re-allocations.
STEPS, RUNS = 10, 3  # Training: runs of so many steps that do not wait for each other.


def measure_device(sizes: Sizes) -> None:
    """Describes device and versions; measures a large matrix product beside the peak."""
    described = description()
    emit({"part": "device"} | described)
    measured = matrix_product(DTYPE, sizes.matrix)()
    peak = peak_flops(described["device"])
    record = {"part": "matrix_product", "dtype": DTYPE, "size": sizes.matrix}
    record |= {"tflop_per_s": measured / 1e12, "peak_tflop_per_s": peak and peak / 1e12}
    emit(record | {"share_of_peak": peak and measured / peak})


def measure_training(sizes: Sizes) -> None:
    """Measures pre-training of the generator by batch size, with the data on the device."""
    model = Model(sizes.generator)
    product = matrix_product(DTYPE, sizes.matrix)()
    peak = peak_flops(jax.devices()[0].device_kind)
    for rows in sizes.training_rows:
        step, (state, batch) = model.training(rows)
        compiled = step.lower(state, batch).compile()

        def run(compiled=compiled, state=state, batch=batch):
            for _ in range(STEPS):
                state, _ = compiled(state, batch)
            return state

        seconds = statistics.median(latencies(run, float("inf"), RUNS)) / STEPS
        work = flops_of(step, state, batch) / seconds
        record = {"part": "train", "width": sizes.generator.width, "dtype": DTYPE}
        record |= {"batch": rows, "samples_per_s": rows / seconds}
        record |= {"tflop_per_s": work / 1e12, "share_of_peak": peak and work / peak}
        emit(record | {"share_of_matmul": work / product})


def measure_allocation(sizes: Sizes) -> None:
    """Measures `Mechanism.allocate` by batch size, without and with learned prices."""
    auction = Auction(sizes.auction)
    mechanism = auction.mechanism()
    for rows in sizes.serving_rows:
        request = auction.requests(rows)
        for rule in RULES:
            allocate = functools.partial(mechanism.allocate, request, rule)
            _emit_latency({"part": "allocate", "rule": rule}, allocate, rows, sizes)


def measure_search(sizes: Sizes) -> None:
    """Measures the search, history to slates, by batch size."""
    shape = sizes.auction
    model = Model(shape.generator, shape.num_candidates)
    for rows in sizes.serving_rows:
        search = model.search(shape.num_beams, None if rows == 1 else rows, shape.num_candidates)
        _emit_latency({"part": "search"}, search, rows, sizes)


def measure_alignment(sizes: Sizes) -> None:
    """Measures a training step of the alignment."""
    rows = sizes.alignment_rows
    step, given = Auction(sizes.auction).alignment(rows)
    _emit_latency({"part": "alignment"}, functools.partial(step, *given), rows, sizes)


def measure_tabulating(sizes: Sizes) -> None:
    """Measures tabulating the outcomes of sessions, one and in batches."""
    auction = Auction(sizes.auction)
    for rows in sizes.serving_rows:
        _emit_latency({"part": "tabulate"}, auction.tabulating(rows), rows, sizes)


def _emit_latency(record: dict[str, Any], call: Callable[[], Any], rows: int, sizes: Sizes) -> None:
    """Emits the latency of a call that treats `rows` requests, and of its first call."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    times = latencies(call, sizes.limit_s)
    speed = {"per_s": rows / statistics.median(times), "first_s": first}
    emit(record | {"batch": rows} | percentiles(times) | speed)


def measure_book(sizes: Sizes) -> None:
    """Measures the search in a large ad book, building it and changing its bids."""
    measure_book_search([sizes.book], RUNS, DTYPE)
    measure_books([sizes.book], RUNS)


def measure_peer(sizes: Sizes, peer: str | None) -> None:
    """Measures training and search beside another implementation on the same device.

    Raises:
      UserError: there is no peer, or it fails.
    """
    if peer is None:
        raise UserError("no peer: name its command with --peer")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # The peer needs memory beside ours.
    for shape in PEER_SHAPES:
        measure_generator(
            shape, ("train", "search"), dtype=DTYPE, batch=sizes.peer_rows, rounds=1, peer=peer
        )


def parts(sizes: Sizes, peer: str | None) -> list[Part]:
    """Returns the parts of the suite.

    Args:
      sizes: their sizes.
      peer: command of another implementation on the same device, if any.
    """
    bind = functools.partial
    return [
        Part("device", 0.2, bind(measure_device, sizes)),
        Part("quick_start", 0.5, bind(measure_quick_start, sizes.quick_start)),
        Part("train", 0.3, bind(measure_training, sizes)),
        Part("allocate", 0.5, bind(measure_allocation, sizes)),
        Part("search", 0.3, bind(measure_search, sizes)),
        Part("alignment", 0.4, bind(measure_alignment, sizes)),
        Part("tabulate", 0.4, bind(measure_tabulating, sizes)),
        Part("book", 0.4, bind(measure_book, sizes)),
        Part("peer", 0.7, bind(measure_peer, sizes, peer)),
        Part("compile", 1.0, bind(measure_compilation, sizes.compiled)),
    ]


PARTS = tuple(part.name for part in parts(SIZES["paper"], None))
