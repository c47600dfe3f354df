"""Measures speed and prints one JSON line per measurement.

Parts: `train` and `search`, the generator's training step and beam search; `index`, the prefix
index; `market`, the simulation; `book`, searching, building and changing large ad books; `auction`,
serving and re-allocations; `exported`, p50 and p99 of serving an exported mechanism by batch size;
`phases`, a training step of each of the auction's phases; `compile`, seconds of compilation by
function.

    python -m experiments.benchmark                          # All parts.
    python -m experiments.benchmark --parts=train,search
    python -m experiments.benchmark --parts=auction,phases,compile --auctions=tiny,small
    python -m experiments.benchmark --parts=book --ads=10000,1000000
    python -m experiments.benchmark --peer="ENV/bin/python torch_tiger.py"

Times are medians of at least `--rounds` runs. Building the index and making the market take longest
and are timed once. `--peer` is a command that takes `--batch --enc --dec --beams --items` and
prints a JSON line with `samples_per_s` and `beam_ms_per_request`. It alternates with ours at the
same work (history items, target codes, width, depth, beams, candidates), and the ratios are
reported. Shapes: 3 codes (20 items of history) and 30 codes (32 items), width 128, 3 + 3 blocks,
W = 1024, 64 beams, 1,000 candidates.

A suite measures a whole machine within a time budget, the most valuable first:

    python -m experiments.benchmark --suite=accelerator --budget_s=540 --out=DIR \\
        --peer="python torch_tiger.py --device cuda --dtype bfloat16"

Its parts are `device`, `quick_start`, `train`, `allocate`, `search`, `alignment`, `tabulate`,
`book`, `peer` and `compile`. Each runs in a process of its own with a share of the time that is
left, so one that fails or hangs does not stop the others. DIR gets results.jsonl (each measurement
at once, and a line on the end of each part), logs/PART.log and summary.md. `--sizes=tiny` rehearses
the suite on a CPU.
"""

import jax
from absl import flags

from ega_jax.errors import UserError
from experiments.benchmarks import accelerator, suite
from experiments.benchmarks.auction import SHAPES as AUCTIONS
from experiments.benchmarks.auction import measure_phases, measure_serving
from experiments.benchmarks.book_search import measure_book_search
from experiments.benchmarks.books import book_sizes, measure_books
from experiments.benchmarks.compilation import measure_compilation
from experiments.benchmarks.data import measure_index, measure_market
from experiments.benchmarks.exported import measure_exported
from experiments.benchmarks.generator import SHAPES, measure_generator
from experiments.benchmarks.sizes import SIZES
from experiments.benchmarks.timing import emit
from experiments.common import command

PARTS = (
    "train",
    "search",
    "index",
    "market",
    "book",
    "auction",
    "exported",
    "phases",
    "compile",
)

_PARTS = flags.DEFINE_list(
    "parts",
    None,
    f"Parts to run, default all: {', '.join(PARTS)}; of the suite: {', '.join(accelerator.PARTS)}.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Runs of each part; the median is reported.", 1)
_BATCH = flags.DEFINE_integer("batch", 64, "Batch size of training.", 1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Data type of the model's computation.")
_ITEMS = flags.DEFINE_integer("items", 10_000_000, "Items in the large prefix index.", 10_000)
_SESSIONS = flags.DEFINE_integer("market_sessions", 100_000, "Sessions of the market.", 1)
_ADS = flags.DEFINE_list("ads", ["10000", "100000", "1000000", "10000000"], "Sizes of books.")
_AUCTIONS = flags.DEFINE_list("auctions", list(AUCTIONS), "Shapes of the auction to time.")
_PEER = flags.DEFINE_string("peer", None, "Command of another implementation to compare with.")
_SUITE = flags.DEFINE_enum("suite", None, ["accelerator"], "Measures a whole machine.")
_BUDGET = flags.DEFINE_float("budget_s", 540.0, "Time of the suite, in seconds.", 0.0)
_OUT = flags.DEFINE_string("out", None, "New folder for the suite's results.")
_SIZES = flags.DEFINE_enum("sizes", "paper", list(SIZES), "Sizes of the suite.")


def main() -> None:
    """Runs the chosen parts, or the suite.

    Raises:
      UserError: a part or an auction is unknown, or the suite has no new folder.
    """
    valid = accelerator.PARTS if _SUITE.value else PARTS
    chosen = list(valid) if _PARTS.value is None else _PARTS.value
    command.check_named("part", chosen, valid)
    command.check_named("auction", _AUCTIONS.value, AUCTIONS)
    if _SUITE.value is None:
        return measure(chosen)
    if _OUT.value is None:
        raise UserError("the suite needs a folder for its results: set --out")
    parts = accelerator.parts(SIZES[_SIZES.value], _PEER.value)
    return suite.run([part for part in parts if part.name in chosen], _BUDGET.value, _OUT.value)


def measure(parts: list[str]) -> None:
    """Measures in this process.

    Raises:
      UserError: a size of a book is no number.
    """
    ads = book_sizes(_ADS.value)
    device = jax.devices()[0]
    emit({"part": "machine", "device": device.device_kind, "devices": jax.device_count()})
    if "index" in parts:
        measure_index(_ITEMS.value)
    if "market" in parts:
        measure_market(_SESSIONS.value)
    if "book" in parts:
        measure_books(ads, _ROUNDS.value)  # First: peaks of memory count this process's.
        measure_book_search(ads, _ROUNDS.value)
    by_shape = {"auction": measure_serving, "phases": measure_phases}
    for part, measure_shape in by_shape.items():
        for name in _AUCTIONS.value if part in parts else ():
            measure_shape(name, _ROUNDS.value)
    for name in _AUCTIONS.value if "exported" in parts else ():
        measure_exported(name, AUCTIONS[name])
    if "compile" in parts:
        for name in _AUCTIONS.value:
            measure_compilation(name)
    timed = [part for part in ("train", "search") if part in parts]
    for shape in SHAPES if timed else ():
        measure_generator(
            shape,
            timed,
            dtype=_DTYPE.value,
            batch=_BATCH.value,
            rounds=_ROUNDS.value,
            peer=_PEER.value,
        )


if __name__ == "__main__":
    command.run(main, __doc__)
