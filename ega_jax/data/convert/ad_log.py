"""From the files of a public ad log to a folder in the ad-log format."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.convert.new_folder import require_free, write_folder
from ega_jax.data.not_learned import not_learned
from ega_jax.data.schema import Summary

ROWS = 50_000  # Sessions of a row group.


@dataclasses.dataclass(frozen=True)
class AdLog:
    """An ad log before it is written; it has no histories and no creatives."""

    pois: pa.Table
    sessions: Iterable[pa.Table]  # in time order; made while they are written.
    num_slots: int  # K
    remarks: tuple[str, ...]  # how the source was read where the format differs.


class LogSource(Protocol):
    """A public ad log that can be converted."""

    def __call__(self, logs: Sequence[Path], items: Path | None) -> AdLog:
        """Reads the files of impressions, in time order, and the file of items if there is one.

        Raises:
          DataError: names the file, the column and the first bad row.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LogReport:
    """What a conversion did."""

    files: tuple[Path, ...]
    remarks: tuple[str, ...]
    summary: Summary

    def __str__(self) -> str:
        return "\n".join(
            [
                f"files: {', '.join(map(str, self.files))}",
                *self.remarks,
                str(self.summary),
                *(f"warning: {text}" for text in not_learned(self.summary)),
            ]
        )


def convert_log(
    source: LogSource, logs: Sequence[Path], items: Path | None, out: Path
) -> LogReport:
    """Writes a folder in the ad-log format, whole or not at all.

    Args:
      source: reads the files.
      logs: the files of impressions, in time order.
      items: the file of items; none if the source has none.
      out: the folder to make; it may not hold anything yet.

    Raises:
      DataError: a file is missing or malformed, or the folder cannot be written.
    """
    require_free(out)
    log = source(logs, items)

    def write(folder: Path) -> None:
        pq.write_table(log.pois, folder / "pois.parquet")
        (folder / "dataset.json").write_text(json.dumps({"num_slots": log.num_slots}) + "\n")
        (folder / "sessions").mkdir()
        _write_sessions(folder / "sessions" / "part-0.parquet", log.sessions)

    summary = write_folder(out, write)
    return LogReport((*logs, *([items] if items else [])), log.remarks, summary)


def _write_sessions(path: Path, sessions: Iterable[pa.Table]) -> None:
    """Writes tables of sessions, numbered from 0, into one file."""
    written, writer = 0, None
    try:
        for table in sessions:
            numbers = pa.array(np.arange(written, written + len(table)))
            # No user is known twice, so each session has a user of its own.
            numbered = table.append_column("session_id", numbers).append_column("user_id", numbers)
            writer = writer or pq.ParquetWriter(path, numbered.schema)
            writer.write_table(numbered, row_group_size=ROWS)
            written += len(table)
    finally:
        if writer:
            writer.close()


def session_table(
    timestamp: pa.Array | pa.ChunkedArray,
    ads: tuple[pa.Array, pa.Array],
    shown: pa.Array,
    clicked: np.ndarray,
    converted: np.ndarray,
    context: np.ndarray,
) -> pa.Table:
    """Sessions in which everything for sale is an ad, without histories, creatives or ids.

    Args:
      timestamp: `[rows]`.
      ads: lists of POIs that may be shown, and of their bids.
      shown: lists of POIs.
      clicked: `[V]` bool, of each POI shown.
      converted: `[V]` bool, likewise.
      context: `[rows, X]` float32.
    """
    rows = len(shown)
    nothing = list_array(np.zeros(0, np.int32), np.zeros(rows, np.int64))
    flags = lambda values: pa.ListArray.from_arrays(shown.offsets, pa.array(values))
    return pa.table(
        {
            "timestamp": timestamp,
            "history_poi": nothing,
            "organic_poi": nothing,
            "ad_poi": ads[0],
            "ad_bid": ads[1],
            "shown_poi": shown,
            "shown_is_ad": flags(np.ones(len(clicked), bool)),
            "click_poi": flags(clicked),
            "click_image": flags(np.zeros(len(clicked), bool)),
            "convert": flags(converted),
            "context": matrix_array(context),
        }
    )


def list_array(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """Lists of some lengths `[rows]`, of values `[V]` in order."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values))


def matrix_array(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """The rows of a matrix `[rows, X]` as lists."""
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def one_hot(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """`[rows, classes]` float32: 1 where a value `[rows]` is the class, one of sorted `classes`."""
    return (values[:, None] == classes).astype(np.float32)
