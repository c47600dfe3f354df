"""Measures speed and prints one JSON line per measurement.

Parts: `train` and `search`, the generator's training step and beam search; `index`, the prefix
index; `market`, the simulation; `auction`, serving and re-allocations; `phases`, a training step of
each of the auction's phases.

    python -m experiments.benchmark                          # All parts.
    python -m experiments.benchmark --parts=train,search
    python -m experiments.benchmark --parts=auction,phases --auctions=tiny,small
    python -m experiments.benchmark --peer="ENV/bin/python torch_tiger.py"

Times are medians of at least `--rounds` runs. Building the index and making the market take longest
and are timed once. `--peer` is a command that takes `--batch --enc --dec --beams --items` and
prints a JSON line with `samples_per_s` and `beam_ms_per_request`. It alternates with ours at the
same work (history items, target codes, width, depth, beams, candidates), and the ratios are
reported. Shapes: 3 codes (20 items of history) and 30 codes (32 items), width 128, 3 + 3 blocks,
W = 1024, 64 beams, 1,000 candidates.
"""

import functools
import json
import shlex
import statistics
import subprocess
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ega_jax.generation import generator
from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.candidates import request_candidates
from ega_jax.generation.generator import GeneratorConfig, GeneratorDecoder
from ega_jax.generation.pretraining import pretraining_loss
from ega_jax.training.optimizer import OptimizerConfig, make_optimizer
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import Catalogue
from experiments.benchmarks.auction import SHAPES as AUCTIONS
from experiments.benchmarks.auction import measure_phases, measure_serving
from experiments.benchmarks.data import measure_index, measure_market
from experiments.benchmarks.timing import emit, flops_of, matrix_product, seconds
from experiments.common import command

PARTS = ("train", "search", "index", "market", "auction", "phases")
W, C, S, N = 1024, 3, 64, 1000
SHAPES = {"3 codes": (20, 1), "30 codes": (32, 10)}  # (T, K)

_PARTS = flags.DEFINE_list("parts", list(PARTS), f"Parts to run: {', '.join(PARTS)}.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Runs of each part; the median is reported.", 1)
_BATCH = flags.DEFINE_integer("batch", 64, "Batch size of training.", 1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Data type of the model's computation.")
_ITEMS = flags.DEFINE_integer("items", 10_000_000, "Items in the large prefix index.", 10_000)
_SESSIONS = flags.DEFINE_integer("market_sessions", 100_000, "Sessions of the market.", 1)
_AUCTIONS = flags.DEFINE_list("auctions", list(AUCTIONS), "Shapes of the auction to time.")
_PEER = flags.DEFINE_string("peer", None, "Command of another implementation to compare with.")


def main() -> None:
    """Runs the chosen parts."""
    command.check_named("part", _PARTS.value, PARTS)
    command.check_named("auction", _AUCTIONS.value, AUCTIONS)
    device = jax.devices()[0]
    emit({"part": "machine", "device": device.device_kind, "devices": jax.device_count()})
    if "index" in _PARTS.value:
        measure_index(_ITEMS.value, _ROUNDS.value)
    if "market" in _PARTS.value:
        measure_market(_SESSIONS.value)
    if "auction" in _PARTS.value:
        for name in _AUCTIONS.value:
            measure_serving(name, _ROUNDS.value)
    if "phases" in _PARTS.value:
        for name in _AUCTIONS.value:
            measure_phases(name, _ROUNDS.value)
    if not {"train", "search"} & set(_PARTS.value):
        return
    for shape, (history_length, num_slots) in SHAPES.items():
        model = Model(history_length, num_slots)
        parts = {}
        if "train" in _PARTS.value:
            parts["train"] = model.train_step()
        if "search" in _PARTS.value:
            parts["search"] = model.search()
        measure_model(shape, model, parts)


class Model:
    """A generator with the benchmark's sizes on random data."""

    def __init__(self, history_length: int, num_slots: int):
        self.config = GeneratorConfig(
            num_codes=W,
            num_layers=C,
            num_slots=num_slots,
            history_length=history_length,
            creatives=False,
            dtype=_DTYPE.value,
        )
        self.rng = np.random.default_rng(0)
        codes = self.rng.integers(0, W, (N, C), dtype=np.int32)
        none = np.zeros((0, C), np.int32), np.zeros((N, 0), np.int32)
        self.catalogue = Catalogue(*map(jnp.asarray, (codes, *none)))
        self.params = generator.init(jax.random.key(0), self.config, self.catalogue)

    def ids(self, *shape: int) -> jax.Array:
        """Returns random item ids."""
        return jnp.asarray(self.rng.integers(0, N, shape, dtype=np.int32))

    def train_step(self) -> Callable[[], float]:
        """Returns a function that takes one training step and returns its seconds."""
        optimizer = make_optimizer(OptimizerConfig(1e-3, weight_decay=1e-2), 1)
        loss = pretraining_loss(self.config, self.catalogue)
        step = jax.jit(make_train_step(loss, optimizer, jax.random.key(1)))
        state = TrainState.create(self.params, optimizer)
        history = self.ids(_BATCH.value, self.config.history_length)
        target = self.ids(_BATCH.value, self.config.num_slots)
        batch = {
            "history_poi": history,
            "history_creative": history,
            "target_poi": target,
            "target_creative": jnp.full_like(target, -1),
            "target_weight": jnp.ones(target.shape),
        }
        compiled = step.lower(state, batch).compile()
        self.train_flops = flops_of(compiled)
        return functools.partial(seconds, compiled, state, batch)

    def search(self) -> Callable[[], float]:
        """Returns a function that serves one request, history to slates; it returns the seconds."""

        @jax.jit
        def serve(decoder, history, codes, bid):
            memory = decoder.encode(history, history, self.catalogue)
            candidates = request_candidates(codes, bid >= 0, bid, bid >= 0)
            return beam_search(decoder, memory, candidates, num_beams=S)

        history = self.ids(self.config.history_length)
        decoder = GeneratorDecoder(self.params, self.config)
        arguments = decoder, history, self.catalogue.poi_codes, jnp.zeros(N)
        return functools.partial(seconds, serve, *arguments)


def measure_model(shape: str, model: Model, parts: dict[str, Callable[[], float]]) -> None:
    """Times training and search, alternating with the peer and a large matrix product."""
    product = matrix_product(_DTYPE.value)
    ours: dict[str, list[float]] = {name: [] for name in parts}
    flops, theirs = [], []
    for run in parts.values():
        run()
    for _ in range(_ROUNDS.value):
        for name, run in parts.items():
            ours[name] += [run() for _ in range(10)]
        flops.append(product())
        if _PEER.value:
            theirs.append(run_peer(model.config))
    for name, times in ours.items():
        median = statistics.median(times)
        record = {"part": name, "shape": shape, "dtype": _DTYPE.value}
        if name == "train":
            record |= {"batch": _BATCH.value, "samples_per_s": _BATCH.value / median}
            record |= {"gflop_per_s": model.train_flops / median / 1e9}
            record |= {"share_of_matmul": model.train_flops / median / statistics.median(flops)}
        else:
            record |= {"beams": S, "candidates": N, "ms_per_request": 1e3 * median}
        if theirs:
            key = "samples_per_s" if name == "train" else "beam_ms_per_request"
            peer = statistics.median(record[key] for record in theirs)
            record |= {f"peer_{key}": peer}
            ratio = record["samples_per_s"] / peer if name == "train" else peer / (1e3 * median)
            record |= {"times_faster": ratio}
        emit(record)


def run_peer(config: GeneratorConfig) -> dict[str, float]:
    """Runs the peer once; it counts its history in tokens, three per item."""
    arguments = [
        *(f"--batch={_BATCH.value}", f"--enc={config.history_length * C}"),
        *(f"--dec={config.num_slots * C}", f"--beams={S}", f"--items={N}"),
    ]
    command_line = [*shlex.split(_PEER.value), *arguments]
    result = subprocess.run(command_line, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    command.run(main, __doc__)
