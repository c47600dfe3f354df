"""Book parts of `experiments.benchmark`: the search in ad books of several sizes."""

from collections.abc import Sequence

from ega_jax.generation.generator import GeneratorConfig
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
    medians = timed([model.search(S, ads=size, organic=ORGANIC) for size in ads], 10 * rounds)
    for size, median in zip(ads, medians, strict=True):
        record = {"part": "book", "ads": size, "dtype": dtype, "ms": 1e3 * median}
        emit(record | {"growth": median / medians[0]})
