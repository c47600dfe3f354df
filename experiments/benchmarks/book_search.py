"""Book parts of `experiments.benchmark`: the search in ad books of several sizes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.generation.candidates import book_candidates
from ega_jax.generation.generator import GeneratorConfig, GeneratorDecoder
from ega_jax.generation.organic_queue import organic_queue
from experiments.benchmarks.generator import Model
from experiments.benchmarks.timing import emit, timed

W, C, K, S, T = 1024, 3, 6, 64, 32
ORGANIC = 40  # Organic items of a request.


def measure_book_search(ads: Sequence[int], rounds: int, dtype: str = "float32") -> None:
    """Times one search, history to slates, in books of random codes; sizes alternate.

    Args:
      ads: sizes of the books; `growth` is relative to the first.
      rounds: ten searches each; the median is reported.
      dtype: data type of the generator's computation.
    """
    sizes = {"num_codes": W, "num_layers": C, "num_slots": K, "history_length": T}
    model = Model(GeneratorConfig(**sizes, creatives=False, dtype=dtype))
    medians = timed([search_in(model, size) for size in ads], 10 * rounds)
    for size, median in zip(ads, medians, strict=True):
        record = {"part": "book", "ads": size, "dtype": dtype, "ms": 1e3 * median}
        emit(record | {"growth": median / medians[0]})


def search_in(model: Model, size: int) -> Callable[[], Any]:
    """Returns a function that searches a book of `size` ads and a queue of organic items."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, W, (size + ORGANIC, C), dtype=np.int32)
    poi, bid = np.arange(size, dtype=np.int32), rng.lognormal(size=size).astype(np.float32)
    book = BookLedger(poi, bid, [0, size], codes, W, num_slots=K).book

    @jax.jit
    def search(decoder, catalogue, history, book, organic, organic_codes):
        memory = decoder.encode(history, history, catalogue)
        number = book.num_ads + jnp.arange(ORGANIC, dtype=jnp.int32)
        queue = organic_queue(book, 0, number, organic, organic_codes)
        return beam_search(decoder, memory, book_candidates(book, 0, queue), num_beams=S)

    decoder = GeneratorDecoder(model.params, model.config)
    organic = jnp.arange(size, size + ORGANIC, dtype=jnp.int32), jnp.asarray(codes[size:])
    return functools.partial(search, decoder, model.catalogue, model.ids(T), book, *organic)
