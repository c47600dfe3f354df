"""From a public dataset's files to a folder in the sequences format."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.convert.actions import Actions
from ega_jax.data.convert.embeddings import Embedder
from ega_jax.data.convert.raw_files import LineCounts, records
from ega_jax.data.convert.source import ItemText, Source
from ega_jax.data.ragged import Ragged
from ega_jax.data.schema import Summary, validate
from ega_jax.data.tables import DataError


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did."""

    actions: LineCounts
    items: LineCounts
    actions_read: int
    items_without_text: int
    summary: Summary

    def __str__(self) -> str:
        return "\n".join(
            [
                f"actions: {self.actions}",
                f"items: {self.items}",
                f"{self.summary.num_actions} of {self.actions_read} actions kept by the filter",
                f"{self.items_without_text} of {self.summary.num_items} items have no text",
                str(self.summary),
            ]
        )


def convert(
    source: Source, reviews: Path, metadata: Path | None, out: Path, embed: Embedder, k: int
) -> Report:
    """Writes a folder in the sequences format, whole or not at all.

    Args:
      source: how to read the files.
      reviews: the file of actions.
      metadata: the file of items; none if `embed` needs no text.
      out: the folder to make; it may not hold anything yet.
      embed: makes the item embeddings.
      k: users and items with fewer actions are left out (k-core).

    Raises:
      DataError: a file is missing, nothing is left, or the result is not valid.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(out, "already exists and is not an empty folder")
    actions_counts, items_counts = LineCounts(), LineCounts()
    lines = records(reviews, source.parse_action, source.encoding, actions_counts)
    every = Actions.collect(lines)
    actions = every.k_core(k)
    if not len(actions.user):
        rule = f"no actions are left after {k}-core filtering of {len(every.user)}"
        raise DataError(reviews, f"{rule}; {actions_counts}")
    texts = _texts(source, metadata, actions.item_names, items_counts)
    return Report(
        actions=actions_counts,
        items=items_counts,
        actions_read=len(every.user),
        items_without_text=sum(not text.words for text in texts),
        summary=_write(out, _item_table(texts, embed(texts)), _sequence_table(actions)),
    )


def _texts(
    source: Source, metadata: Path | None, names: Sequence[str], counts: LineCounts
) -> list[ItemText]:
    """The text of each item, in the order of `names`."""
    texts = {name: ItemText(name) for name in names}
    if metadata is not None:
        for text in records(metadata, source.parse_item, source.encoding, counts):
            if text.item in texts:
                texts[text.item] = text
    return list(texts.values())


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
    """Writes and validates at a temporary name, then moves the folder into place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    part.mkdir()
    try:
        pq.write_table(items, part / "items.parquet")
        pq.write_table(sequences, part / "sequences.parquet")
        summary = validate(part)
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return summary
