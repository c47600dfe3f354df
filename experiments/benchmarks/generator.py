"""Generator parts of `experiments.benchmark`: training and beam search, beside a peer's."""

import functools
import json
import shlex
import statistics
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.errors import UserError
from ega_jax.evaluation.flops import flops_of
from ega_jax.generation import generator
from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.generation.candidates import book_candidates
from ega_jax.generation.generator import GeneratorConfig, GeneratorDecoder
from ega_jax.generation.organic_queue import organic_queue
from ega_jax.generation.pretraining import pretraining_loss
from ega_jax.training.optimizer import OptimizerConfig, make_optimizer
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import Catalogue
from experiments.benchmarks.timing import emit, matrix_product, seconds

W, C, S, N = 1024, 3, 64, 1000
SHAPES = {"3 codes": (20, 1), "30 codes": (32, 10)}  # (T, K)
CREATIVES = 4  # Creatives of each item, if the model has creatives.


def config_of(shape: str, dtype: str) -> GeneratorConfig:
    """Returns the generator's config of one of `SHAPES`."""
    history_length, num_slots = SHAPES[shape]
    return GeneratorConfig(
        num_codes=W,
        num_layers=C,
        num_slots=num_slots,
        history_length=history_length,
        creatives=False,
        dtype=dtype,
    )


class Model:
    """A generator with random parameters, and random data."""

    def __init__(self, config: GeneratorConfig, num_items: int = N):
        self.config, self.num_items = config, num_items
        self.rng = np.random.default_rng(0)
        owned = np.arange(num_items * CREATIVES, dtype=np.int32).reshape(num_items, CREATIVES)
        owned = owned if config.creatives else owned[:, :0]
        catalogue = self._codes(num_items), self._codes(owned.size), owned
        self.catalogue = Catalogue(*map(jnp.asarray, catalogue))
        start = jax.jit(lambda key: generator.init(key, config, self.catalogue))
        self.params = start(jax.random.key(0))

    def _codes(self, rows: int) -> np.ndarray:
        shape = rows, self.config.num_layers
        return self.rng.integers(0, self.config.num_codes, shape, dtype=np.int32)

    def ids(self, *shape: int) -> jax.Array:
        """Returns random item ids."""
        return jnp.asarray(self.rng.integers(0, self.num_items, shape, dtype=np.int32))

    def batch(self, rows: int) -> dict[str, jax.Array]:
        """Returns a random training batch."""
        history = self.ids(rows, self.config.history_length)
        target = self.ids(rows, self.config.num_slots)
        creative = target * CREATIVES if self.config.creatives else jnp.full_like(target, -1)
        return {
            "history_poi": history,
            "history_creative": history * CREATIVES,
            "target_poi": target,
            "target_creative": creative,
            "target_weight": jnp.ones(target.shape),
        }

    def training(self, rows: int, **options: Any) -> tuple[jax.stages.Wrapped, tuple]:
        """Returns the training step and its arguments; `options` go to `jax.jit`."""
        optimizer = make_optimizer(OptimizerConfig(1e-3, weight_decay=1e-2), 1)
        loss = pretraining_loss(self.config, self.catalogue)
        step = jax.jit(make_train_step(loss, optimizer, jax.random.key(1)), **options)
        return step, (TrainState.create(self.params, optimizer), self.batch(rows))

    def search(
        self, num_beams: int = S, rows: int | None = None, ads: int = N, organic: int = 1
    ) -> Callable[[], Any]:
        """Returns a function that serves requests to an ad book, history to slates.

        Args:
          num_beams: `S`.
          rows: the number of requests in a batch; `None`: one request without a batch axis.
          ads: size of the book, which all requests share and which is built beforehand.
          organic: organic items of a request, at least 1.
        """
        codes = self._codes(ads + organic)
        poi, bid = np.arange(ads, dtype=np.int32), self.rng.lognormal(size=ads).astype(np.float32)
        sizes = self.config.num_codes, self.config.num_slots
        book = BookLedger(poi, bid, [0, ads], codes, sizes[0], num_slots=sizes[1]).book

        def serve(decoder, catalogue, book, organic, codes, history):
            memory = decoder.encode(history, history, catalogue)
            queue = organic_queue(book, 0, organic, organic, codes)
            return beam_search(
                decoder, memory, book_candidates(book, 0, queue), num_beams=num_beams
            )

        served = serve if rows is None else jax.vmap(serve, in_axes=(*(None,) * 5, 0))
        history = self.ids(*([] if rows is None else [rows]), self.config.history_length)
        decoder = GeneratorDecoder(self.params, self.config)
        queue = jnp.arange(ads, ads + organic, dtype=jnp.int32), jnp.asarray(codes[ads:])
        return functools.partial(jax.jit(served), decoder, self.catalogue, book, *queue, history)


def measure_generator(
    shape: str, parts: Sequence[str], *, dtype: str, batch: int, rounds: int, peer: str | None
) -> None:
    """Times training and search, alternating with the peer and a large matrix product.

    Args:
      shape: one of `SHAPES`.
      parts: `train`, `search` or both.
      dtype: data type of the model's computation.
      batch: rows of a training batch.
      rounds: runs of each part and of the peer; medians are reported.
      peer: command of another implementation, if any.
    """
    config = config_of(shape, dtype)
    model, product = Model(config), matrix_product(dtype)
    calls: dict[str, Callable[[], Any]] = {}
    work = 0.0
    if "train" in parts:
        step, given = model.training(batch)
        compiled = step.lower(*given).compile()
        calls["train"], work = functools.partial(compiled, *given), flops_of(step, *given)
    if "search" in parts:
        calls["search"] = model.search()
    ours: dict[str, list[float]] = {name: [] for name in calls}
    flops, theirs = [], []
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            ours[name] += [seconds(call) for _ in range(10)]
        flops.append(product())
        if peer:
            theirs.append(run_peer(peer, config, batch))
    for name, times in ours.items():
        record = {"part": name, "shape": shape, "dtype": dtype}
        median = statistics.median(times)
        if name == "train":
            record |= {"batch": batch, "samples_per_s": batch / median}
            record |= {"gflop_per_s": work / median / 1e9}
            record |= {"share_of_matmul": work / median / statistics.median(flops)}
        else:
            record |= {"beams": S, "ads": N, "ms_per_request": 1e3 * median}
        emit(record | _against(theirs, record))


def _against(theirs: list[dict[str, float]], ours: dict[str, Any]) -> dict[str, float]:
    """Returns the peer's median and how many times faster ours is; nothing without a peer."""
    if not theirs:
        return {}
    trains = ours["part"] == "train"
    key = "samples_per_s" if trains else "beam_ms_per_request"
    peer = statistics.median(record[key] for record in theirs)
    ratio = ours["samples_per_s"] / peer if trains else peer / ours["ms_per_request"]
    return {f"peer_{key}": peer, "times_faster": ratio}


def run_peer(peer: str, config: GeneratorConfig, batch: int) -> dict[str, float]:
    """Runs the peer once; it counts its history in tokens, three per item.

    Raises:
      UserError: the peer fails or prints no JSON line; the message has its last line.
    """
    arguments = [
        *(f"--batch={batch}", f"--enc={config.history_length * C}"),
        *(f"--dec={config.num_slots * C}", f"--beams={S}", f"--items={N}"),
    ]
    try:
        result = subprocess.run(
            [*shlex.split(peer), *arguments], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UserError(f"the peer cannot be started: {error}") from error
    last = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()[-1:]
    try:
        return json.loads("".join(last))
    except ValueError as error:
        raise UserError(f"the peer failed with {result.returncode}: {''.join(last)}") from error
