"""Compilation part of `experiments.benchmark`: seconds of compilation by function."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, monitoring
from jax.experimental.compilation_cache import compilation_cache

from ega_jax.evaluation.interest import KS, InterestEvaluator
from experiments.benchmarks.auction import SHAPES, Auction, Shape
from experiments.benchmarks.generator import Model
from experiments.benchmarks.timing import emit

STAGES = {  # JAX's events -> names of fields.
    "/jax/core/compile/jaxpr_trace_duration": "trace_s",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower_s",
    "/jax/core/compile/backend_compile_duration": "xla_s",
}
GENERATOR_ROWS, AUCTION_ROWS = 64, 2  # Batch sizes of what is compiled.


@dataclasses.dataclass
class CompileTimes:
    """Start and end of each stage of compilation, by stage."""

    spans: dict[str, list[tuple[float, float]]] = dataclasses.field(
        default_factory=lambda: {stage: [] for stage in STAGES.values()}
    )

    def record(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:
        """Records an event of JAX."""
        if event in STAGES:
            self.spans[STAGES[event]].append((start_time, end_time))

    @property
    def seconds(self) -> float:
        """The time in which anything was traced, lowered or compiled."""
        return covered(span for spans in self.spans.values() for span in spans)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage."""
        return {stage: covered(spans) for stage, spans in self.spans.items()}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals; traces of inner functions lie in outer ones."""
    total, last = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, last), 0.0)
        last = max(last, end)
    return total


@contextlib.contextmanager
def compile_times() -> Iterator[CompileTimes]:
    """Measures how long JAX compiles while the context is open."""
    times = CompileTimes()
    monitoring.register_event_time_span_listener(times.record)
    try:
        yield times
    finally:
        monitoring.unregister_event_time_span_listener(times.record)


@contextlib.contextmanager
def no_cache() -> Iterator[None]:
    """Turns the compilation cache on disk off while the context is open."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX reads the setting only when its cache is new.
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def measure_compilation(name: str) -> None:
    """Measures the compilation of each function; emits one line per function.

    `relative` is the time relative to that of a reference function, which is compiled just before:
    it compares machines, and minutes of a machine that is shared.

    Args:
      name: one of the auction's `SHAPES`.
    """
    with no_cache():
        for function, call in functions(SHAPES[name]):
            reference = compiled(reference_call()).seconds
            times = compiled(call)
            record = {"part": "compile", "function": function, "shape": name}
            record |= {"seconds": times.seconds, "relative": times.seconds / reference}
            emit(record | times.stages)


def compiled(call: Callable[[], Any]) -> CompileTimes:
    """Calls a function with nothing compiled before; returns how long compilation took."""
    jax.clear_caches()
    with compile_times() as times:
        jax.block_until_ready(call())
    return times


def functions(shape: Shape) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields calls of the functions that take longest to compile, with their names."""
    auction, model = Auction(shape), Model(shape.generator)
    request = auction.requests(AUCTION_ROWS)
    yield "serving", functools.partial(auction.mechanism().allocate, request)
    step, given = model.training(GENERATOR_ROWS)
    yield "generator step", functools.partial(step, *given)
    yield "generator evaluation", evaluation(auction)
    yield "tabulating", auction.tabulating(AUCTION_ROWS)
    for phase, (_, (step, given)) in auction.steps().items():
        yield f"{phase} step", functools.partial(step, *given)
    yield from auction.judging(AUCTION_ROWS).items()
    yield "beam search", model.search(shape.num_beams)
    yield "joint search", auction.reallocations()[1]


def evaluation(auction: Auction) -> Callable[[], Any]:
    """Returns a call that evaluates the generator, as pre-training does."""
    batch = auction.batch(AUCTION_ROWS)
    batch |= {
        "target_poi": batch["shown_poi"],
        "target_creative": batch["shown_creative"],
        "target_weight": np.ones(batch["shown_poi"].shape, np.float32),
    }
    sizes = auction.shape.generator
    evaluator = InterestEvaluator(
        config=sizes,
        catalogue=auction.system.items.catalogue,
        everything=None,
        num_beams=max(auction.shape.num_beams, max(KS)),
        creative_unigram=jnp.zeros((sizes.num_layers, sizes.num_codes)),
    )
    return functools.partial(evaluator, auction.generator.params, [batch])


def reference_call() -> Callable[[], Any]:
    """Returns a call of the reference: the gradient of a small network, and a search in a loop.

    It must never change: other functions are compared with it across versions.
    """

    def loss(weights, x):
        for w in weights:
            scores = jax.nn.softmax(x @ w @ x.T)
            x = x + jax.nn.gelu(scores @ x @ w)
        return jnp.square(x).mean()

    def search(weights, x):
        def step(carry, _):
            x, best = carry
            values, order = lax.top_k((x @ weights[0]).sum(-1), 8)
            x = jnp.where(values[:1] > 0, jnp.sort(x, axis=0)[order[0]] * x, x + best)
            return (x, best + values.mean()), order

        return lax.scan(step, (x, 0.0), length=4)

    @jax.jit
    def reference(weights, x):
        return jax.value_and_grad(loss)(weights, x), search(weights, x)

    weights = [jnp.full((32, 32), 0.1 * (1 + layer)) for layer in range(4)]
    return functools.partial(reference, weights, jnp.ones((16, 32)))
