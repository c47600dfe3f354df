"""Batches for training and evaluation, through grain, from either input format."""

import dataclasses
import math
from pathlib import Path

import grain
import numpy as np

from ega_jax.data import ad_logs, schema, sequences
from ega_jax.data.batch_source import Batch, BatchSource, InMemoryRows, Rows
from ega_jax.data.length_sorted import LengthSorted
from ega_jax.data.order import Order
from ega_jax.errors import UserError

Dataset = sequences.SequenceDataset | ad_logs.AdLogDataset

_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
_FOR_EVER = 2**60  # examples; more than any run reads.


def open_dataset(
    folder: Path | str,
    num_slots: int | None = None,
    fractions: ad_logs.Fractions = (0.7, 0.1, 0.05),
    progress: schema.Progress = lambda done, total: None,
) -> Dataset:
    """Validates a dataset folder and opens it.

    Args:
      folder: in either format of `schema`.
      num_slots: K of an ad log; default: as declared in the folder, else the most items shown.
      fractions: shares of the splits "pretrain", "align" and "tune" of an ad log, in time order;
        "test" is the rest.
      progress: called with (rows checked, rows in all).

    Raises:
      DataError: the folder breaks a rule of its format.
    """
    summary = schema.validate(folder, num_slots, progress)
    if summary.format == "sequences":
        return sequences.SequenceDataset.load(folder, summary)
    return ad_logs.AdLogDataset.load(folder, summary, fractions)


def train_batches(
    dataset: Dataset,
    split: str,
    *,
    batch_size: int,
    history_length: int,
    num_slots: int | None = None,
    exposure_weight: float = 0.1,
    seed: int = 0,
    sort_by_length: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Shuffled batches without end; every row comes once per epoch.

    Sequences give `history_poi`, `history_creative` `[B, T]` int32 (most recent last, -1 padding
    on the left), `target_poi`, `target_creative` `[B, K]` int32 (-1 padding on the right) and
    `target_weight` `[B, K]` float32. Ad logs also give `shown_poi`, `shown_creative` `[B, K]` int32
    (which are the targets), `shown_is_ad`, `click_poi`, `click_image`, `convert` `[B, K]` bool and
    `session` `[B]` int32. Creatives are -1 where sequences have none; in an ad log
    without creatives they are the POIs.

    The candidates of an ad log without books are `item` `[B, N]` int32 (ads, then organic items in
    upstream order, -1 padding on the right), `is_ad` `[B, N]` bool and `bid` `[B, N]` float32.
    With books they are `organic` `[B, M]` int32 (in upstream order, -1 padding on the right) and
    `book` `[B]` int32, the number of the book in the dataset's `books`.

    Optional columns come with the batches of the logs that have them: `context` `[B, X]` float32,
    `explored` `[B]` bool, and `propensity` `[B, K]` float32, whose product over the slots is the
    propensity of the slate, 0 where it is not known. A log's number for a whole slate stands in the
    first slot, with 1 in the others.

    Args:
      dataset: what `open_dataset` returned.
      split: "train" for sequences; "pretrain", "align", "tune" or "test" for ad logs.
      batch_size: B, over all processes.
      history_length: T; longer histories keep their most recent items.
      num_slots: K; default: that of the dataset's summary.
      exposure_weight: target weight of what was shown but not clicked (ad logs); a click has 1.
      seed: sets the order and the split points.
      sort_by_length: put sequences of similar length into one batch and drop needless padding: T
        and K then differ from batch to batch; see `length_sorted`. Ad logs ignore it.
      process_index: of this process.
      process_count: how many share a batch.

    Returns:
      An iterable dataset; its iterators have `get_state` and `set_state`.
    """
    num_slots = num_slots or dataset.summary.num_slots
    if isinstance(dataset, sequences.SequenceDataset):
        _require_choice(split, ("train",))
        rows = sequences.TrainingSequences(dataset, history_length, num_slots, seed)
    else:
        rows = _sessions(dataset, split, history_length, num_slots, exposure_weight)
    share = _share(batch_size, process_index, process_count)
    by_length = sort_by_length and isinstance(dataset, sequences.SequenceDataset)
    return _without_end(rows, split, batch_size, share, seed, by_length)


def eval_batches(
    dataset: Dataset,
    split: str,
    *,
    batch_size: int,
    history_length: int,
    num_slots: int | None = None,
    exposure_weight: float = 0.1,
    max_batches: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """One pass over a split in stored order; the last batch is filled up with blank rows.

    With `max_batches`, at most that many batches are read, evenly spread over the split, because
    neighbouring rows of a file are often alike. Other arguments and the keys are those of
    `train_batches`. The splits of sequences are "validation" and "test"; their target is one item,
    in the first slot. A blank row has ids of -1 and weight 0.
    """
    num_slots = num_slots or dataset.summary.num_slots
    if isinstance(dataset, sequences.SequenceDataset):
        _require_choice(split, tuple(sequences.HELD_OUT))
        rows = sequences.HeldOutItems(dataset, split, history_length, num_slots)
    else:
        rows = _sessions(dataset, split, history_length, num_slots, exposure_weight)
    order = Order(_sizes(rows, split), seed=None)
    share = _share(batch_size, process_index, process_count)
    source = BatchSource(rows, order, order.num_rows, batch_size, share)
    return _iterate(source, 1 if max_batches is None else math.ceil(len(source) / max_batches))


def array_batches(
    arrays: Batch,
    *,
    batch_size: int,
    seed: int = 0,
    sort_by_length: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Shuffled batches `[B, ...]` without end of the rows of arrays `[rows, ...]` in memory.

    With `sort_by_length`, the arrays must be histories and targets, batched as in `train_batches`.
    """
    share = _share(batch_size, process_index, process_count)
    name = ", ".join(arrays)
    return _without_end(ArrayRows(arrays), name, batch_size, share, seed, sort_by_length)


@dataclasses.dataclass(frozen=True)
class ArrayRows(InMemoryRows):
    """The rows of arrays of one length: a catalogue's embeddings, a table of outcomes."""

    arrays: Batch  # Each [rows, ...].

    @property
    def num_rows(self) -> int:
        """Rows that all arrays have."""
        return len(next(iter(self.arrays.values())))

    def examples(self, pool: None, rows: np.ndarray, epoch: int) -> Batch:
        """Some rows of each array."""
        return {name: array[rows] for name, array in self.arrays.items()}


def _without_end(
    rows: Rows, name: str, batch_size: int, share: range, seed: int, sort_by_length: bool
) -> grain.IterDataset:
    """Shuffled batches of rows, every row once per epoch."""
    order = Order(_sizes(rows, name), seed)
    if not sort_by_length:
        return _iterate(BatchSource(rows, order, _FOR_EVER, batch_size, share))
    whole = BatchSource(rows, order, _FOR_EVER, batch_size, range(batch_size))
    return _iterate(LengthSorted(whole, share, seed))


def _iterate(source: BatchSource | LengthSorted, stride: int = 1) -> grain.IterDataset:
    return grain.MapDataset.source(source)[::stride].to_iter_dataset(_READ_AHEAD)


def _sessions(
    dataset: ad_logs.AdLogDataset,
    split: str,
    history_length: int,
    num_slots: int,
    exposure_weight: float,
) -> ad_logs.LoggedSessions:
    _require_choice(split, ad_logs.SPLITS)
    if num_slots < dataset.summary.num_slots:
        shown = dataset.summary.num_slots
        raise UserError(f"num_slots={num_slots}, but the log's slates have {shown} slots")
    return ad_logs.LoggedSessions(
        dataset.split(split),
        history_length,
        num_slots,
        dataset.summary.num_candidates,
        exposure_weight,
        dataset.books,
        dataset.recorded,
        dataset.summary.has_creatives,
    )


def _require_choice(split: str, valid: tuple[str, ...]):
    if split not in valid:
        raise UserError(f"no split '{split}' here; valid: {', '.join(valid)}")


def _sizes(rows: Rows, split: str) -> tuple[int, ...]:
    if not sum(rows.group_sizes):
        raise UserError(f"split '{split}' has no rows")
    return rows.group_sizes


def _share(batch_size: int, process_index: int, process_count: int) -> range:
    if batch_size % process_count:
        raise UserError(f"batch_size={batch_size} does not divide by {process_count} processes")
    size = batch_size // process_count
    return range(process_index * size, (process_index + 1) * size)
