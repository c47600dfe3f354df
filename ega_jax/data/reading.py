"""Whole columns of tables that were found valid, as arrays in memory."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data import columns
from ega_jax.data.columns import to_numpy
from ega_jax.data.ragged import Ragged
from ega_jax.data.tables import Table


def read_matrix(table: Table, column: str) -> np.ndarray:
    """`[rows, E]` float32 of a validated table's column of embeddings."""
    return np.concatenate([to_matrix(chunks) for chunks in columns_of(table, column)])


def read_numbers(table: Table, column: str, dtype: type) -> np.ndarray:
    """`[rows]` of a validated table's column of numbers."""
    return np.concatenate([to_numpy(chunks, dtype) for chunks in columns_of(table, column)])


def read_lists(table: Table, column: str, dtype: type) -> Ragged:
    """The rows of a validated table's column of lists."""
    return Ragged.joined([Ragged.from_arrow(chunks, dtype) for chunks in columns_of(table, column)])


def to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """`[rows, E]` float32 of a column of lists of one length, none of them null."""
    lists = Ragged.from_arrow(column, np.float32)
    return lists.values.reshape(lists.num_rows, -1)


def holds_dates(table: Table, column: str) -> bool:
    """Whether a column, or the lists in it, hold timestamps, not integers."""
    kind = columns.plain_type(pq.read_schema(table.files[0].path).field(column).type)
    return columns.is_date(kind.value_type if columns.is_list(kind) else kind)


def columns_of(table: Table, column: str) -> Iterator[pa.ChunkedArray]:
    """A column, file by file, as its type may differ; of nulls where a file lacks it."""
    for part in table.files:
        with pq.ParquetFile(part.path) as file:
            if column in file.schema_arrow.names:
                yield file.read(columns=[column])[column]
            else:
                yield pa.chunked_array([pa.nulls(part.num_rows)])
