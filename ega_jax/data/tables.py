"""Parquet files with known columns: opening, decoding, and errors that name the culprit."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.errors import UserError


class DataError(UserError):
    """Malformed input; the message names the file, the column, the first bad row and the rule."""

    def __init__(self, path: Path | str, rule: str, column: str = "", row: int | None = None):
        place = [str(path)]
        if column:
            place.append(f"column '{column}'")
        if row is not None:
            place.append(f"row {row}")
        super().__init__(f"{', '.join(place)}: {rule}")


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


_TYPE_TESTS = {
    "integer": pa.types.is_integer,
    "float": pa.types.is_floating,
    "string": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    "list of integers": lambda kind: _is_list(kind) and pa.types.is_integer(kind.value_type),
    "list of floats": lambda kind: _is_list(kind) and pa.types.is_floating(kind.value_type),
    "list of booleans": lambda kind: _is_list(kind) and pa.types.is_boolean(kind.value_type),
    "fixed-size list of floats": lambda kind: (
        pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
    ),
}


def open_table(
    path: Path, required: Mapping[str, str], optional: Mapping[str, str]
) -> pq.ParquetFile:
    """Opens a Parquet file after checking that its columns exist and have the right types.

    Args:
      path: the file.
      required: column name -> type, a key of the type tests above.
      optional: likewise, for columns that may be absent.

    Raises:
      DataError: the file is missing or unreadable, a column is missing or of another type.
    """
    if not path.is_file():
        raise DataError(path, "the file does not exist")
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(path, f"not a readable Parquet file ({error})") from error
    schema = table.schema_arrow
    for column, kind in {**required, **optional}.items():
        if column not in schema.names:
            if column in required:
                raise DataError(path, f"the column is missing (a {kind})", column)
            continue
        if not _TYPE_TESTS[kind](schema.field(column).type):
            found = schema.field(column).type
            raise DataError(path, f"the column must be a {kind}, found {found}", column)
    return table


def to_numpy(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    """`[rows]` decoded column of numbers without nulls."""
    return column.to_numpy().astype(dtype, copy=False)


def to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """`[rows, E]` float32 decoded column of fixed-size lists without null rows."""
    width = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate([np.zeros(0, np.float32), *(p.astype(np.float32) for p in parts)])
    return flat.reshape(-1, width)


def read_matrix(path: Path, column: str) -> np.ndarray:
    """`[rows, E]` float32 of a validated file's column of embeddings."""
    return to_matrix(pq.read_table(path, columns=[column])[column])
