"""From a public dataset's files to a folder in the sequences format."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.convert.actions import Actions
from ega_jax.data.convert.embeddings import Embedder
from ega_jax.data.convert.new_folder import require_free, write_folder
from ega_jax.data.convert.raw_files import RawFile
from ega_jax.data.convert.records import RecordCounts, records
from ega_jax.data.convert.report import ActionCounts, Report
from ega_jax.data.convert.source import ItemText, Source
from ega_jax.data.ragged import Ragged
from ega_jax.data.schema import Summary
from ega_jax.data.tables import DataError


def convert(
    source: Source,
    reviews: Path,
    metadata: Path | None,
    out: Path,
    embed: Embedder,
    k: int,
    keep_repeats: bool = False,
) -> Report:
    """Writes a folder in the sequences format, whole or not at all.

    Args:
      source: how to read the files.
      reviews: the file of actions.
      metadata: the file of items; none if `embed` needs no text.
      out: the folder to make; it may not hold anything yet.
      embed: makes the item embeddings.
      k: users and items with fewer actions are left out (k-core).
      keep_repeats: keeps actions that share user, item and time with an earlier one. Such repeats
        are often faults of the data, and put the item to predict into its own history.

    Raises:
      DataError: a file is missing or of another kind, nothing is left, or the result is not
        valid.
    """
    require_free(out)
    files = tuple(RawFile.inspect(path) for path in (reviews, metadata) if path is not None)
    read, described = RecordCounts(), RecordCounts()
    actions, counts = _read_actions(source, files[0], read, k, keep_repeats)
    texts, repeated = {name: ItemText(name) for name in actions.item_names}, 0
    if metadata is not None:
        repeated = _describe(texts, files[1], source, described)
    items = list(texts.values())
    return Report(
        files=files,
        actions=read,
        items=described,
        counts=counts,
        repeated_items=repeated,
        items_without_text=sum(not text.words for text in items),
        summary=_write(out, _item_table(items, embed(items)), _sequence_table(actions)),
    )


def _read_actions(
    source: Source, file: RawFile, read: RecordCounts, k: int, keep_repeats: bool
) -> tuple[Actions, ActionCounts]:
    """The actions that repeats and the k-core filter leave, and what became of the others.

    Raises:
      DataError: none is left.
    """
    every = Actions.collect(records(file, source.actions, read))
    distinct = every.without_repeats()
    kept = (every if keep_repeats else distinct).k_core(k)
    if not len(kept.user):
        counted = f"{len(every.time)} actions, {len(every.time) - len(distinct.time)} repeats"
        rule = f"no actions are left after {k}-core filtering of {counted}"
        raise DataError(file.path, f"{rule}; {read}")
    return kept, ActionCounts.of(every, distinct, kept, keep_repeats)


def _describe(
    texts: dict[str, ItemText], file: RawFile, source: Source, counts: RecordCounts
) -> int:
    """Fills in the texts of items; of several for one item, the first that is not empty.

    Returns:
      How many were left out for an earlier one.

    Raises:
      DataError: no item has any text.
    """
    repeated, other = 0, ""
    for text in records(file, source.items, counts):
        if text.item not in texts:
            other = other or text.item
        elif texts[text.item].words:
            repeated += 1
        else:
            texts[text.item] = text
    if not any(text.words for text in texts.values()):
        ids = f"the reviews have '{next(iter(texts))}'" + (
            f", this file '{other}'" if other else ""
        )
        rule = f"has no text for any of the {len(texts)} items; {ids}; expected"
        raise DataError(file.path, f"{rule} {source.items.expected}")
    return repeated


def _item_table(texts: Sequence[ItemText], vectors: np.ndarray) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    return pa.table(
        {
            "item_id": np.arange(len(texts), dtype=np.int32),
            "source_id": [text.item for text in texts],
            "title": [text.title for text in texts],
            "categories": pa.array([text.categories for text in texts], pa.list_(pa.string())),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )


def _sequence_table(actions: Actions) -> pa.Table:
    items, times = actions.sequences()
    return pa.table(
        {
            "user_id": np.arange(items.num_rows, dtype=np.int32),
            "source_id": actions.user_names,
            "items": _list_array(items),
            "timestamps": _list_array(times),
        }
    )


def _list_array(lists: Ragged) -> pa.Array:
    return pa.LargeListArray.from_arrays(lists.offsets, lists.values)


def _write(out: Path, items: pa.Table, sequences: pa.Table) -> Summary:
    def write(folder: Path) -> None:
        pq.write_table(items, folder / "items.parquet")
        pq.write_table(sequences, folder / "sequences.parquet")

    return write_folder(out, write)
