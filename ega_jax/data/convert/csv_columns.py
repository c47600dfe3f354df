"""Columns of a csv file with a header, as logs of millions of rows have them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ega_jax.data.tables import DataError


def column_names(path: Path) -> list[str]:
    """The names in the header of a csv file, plain or compressed.

    Raises:
      DataError: the file does not exist or is not csv.
    """
    if not path.is_file():
        raise DataError(path, "the file does not exist")
    try:
        with pa.csv.open_csv(path) as reader:
            return reader.schema.names
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"not a readable csv file ({error})") from error


def read_columns(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Reads some columns of a csv file into memory.

    Args:
      path: the file.
      types: column name -> type.

    Raises:
      DataError: a column is missing, or a value is missing or of another type.
    """
    names = column_names(path)
    for column in types:
        if column not in names:
            raise DataError(path, f"the column is missing; there are {', '.join(names)}", column)
    kinds = pa.csv.ConvertOptions(include_columns=list(types), column_types=dict(types))
    try:
        # With threads, Arrow's errors do not name the row.
        table = pa.csv.read_csv(path, pa.csv.ReadOptions(use_threads=False), convert_options=kinds)
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"cannot be read to its end ({error})") from error
    if not table.num_rows:
        raise DataError(path, "the file has a header and no rows")
    for column in types:
        if table[column].null_count:
            row = int(np.argmax(table[column].is_null().to_numpy()))
            raise DataError(path, "the value is missing", column, row)
    return table


def require(ok: np.ndarray, path: Path, column: str, rule: str, found: Any) -> None:
    """Holds if `ok` `[rows]` is true everywhere; else names the first bad row of the file.

    Raises:
      DataError: quotes what was `found` `[rows]`.
    """
    if not ok.all():
        row = int(np.argmin(ok))
        raise DataError(path, f"{rule}, found {found[row]}", column, row)
