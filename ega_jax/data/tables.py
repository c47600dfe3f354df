"""Parquet tables: their files, their columns, and errors that name the culprit.

A table is one file, or a folder of parts at any depth, as Spark, Hive and others write them.
"""

import contextlib
import dataclasses
import glob
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data import columns
from ega_jax.data.columns import to_numpy
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


@dataclasses.dataclass(frozen=True)
class TableFile:
    """One file of a table."""

    path: Path
    num_rows: int
    usable: frozenset[str]  # optional columns that are there, hold values and have a known type.
    unknown: Mapping[str, pa.DataType]  # optional columns of any other type, which are left out.
    span: tuple[int, int] = (0, 0)  # first and last value of the column that orders the files.
    has_dates: bool = False  # whether that column holds timestamps, not integers.


@dataclasses.dataclass(frozen=True)
class Table:
    """The files of a table that hold rows, in the order in which they are read."""

    path: Path  # of the file, or of the folder of parts.
    files: tuple[TableFile, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(file.num_rows for file in self.files)

    def has(self, column: str) -> bool:
        """Whether every file has an optional column that can be used."""
        return all(column in file.usable for file in self.files)


def table_files(path: Path) -> list[Path]:
    """The Parquet files of a table, in the order of their names.

    Of a folder, these are the files below it, at any depth, that are named `*.parquet` or begin as
    Parquet does (Hive gives no suffix). Names that begin with `.` or `_` are left out:
    `_SUCCESS`, `_metadata`, checksums, unfinished writes.

    Raises:
      DataError: there is no such file or folder, or the folder has no Parquet file.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        kind = "file" if path.suffix else "folder"
        raise DataError(path, f"the {kind} does not exist")
    below = sorted(Path(name) for name in glob.iglob("**", root_dir=path, recursive=True))
    shown = (path / name for name in below if not any(map(_is_hidden, name.parts)))
    files = [file for file in shown if _is_parquet(file)]
    if not files:
        raise DataError(path, "the folder holds no Parquet file")
    return files


def _is_hidden(name: str) -> bool:
    return name[0] == "_" and "=" not in name  # `_column=value` is a partition.


def _is_parquet(path: Path) -> bool:
    if not path.is_file() or path.suffix == ".crc":
        return False
    if ".parquet" in path.suffixes:
        return True
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def column_names(path: Path) -> set[str]:
    """The names of the columns of a table: of its first file that holds rows.

    Raises:
      DataError: a file is missing or unreadable.
    """
    for file in table_files(path):
        with _explained(file, "not a readable Parquet file"):
            metadata = pq.read_metadata(file)
        if metadata.num_rows:
            return set(metadata.schema.to_arrow_schema().names)
    return set()


def open_table(
    path: Path,
    required: Mapping[str, str],
    optional: Mapping[str, str],
    order_by: str | None = None,
) -> Table:
    """Finds the files of a table, after checking that columns exist and have the right types.

    Files without rows are left out.

    Args:
      path: a file, or a folder of parts.
      required: column name -> type, a key of `columns.TYPES`.
      optional: likewise, for columns that may be absent; of another type they are left out.
      order_by: the files are put in the order of this column's values; by default, of their names.

    Raises:
      DataError: a file is missing or unreadable, or a column is missing or of another type.
    """
    found = [_inspect(file, required, optional, order_by) for file in table_files(path)]
    files = sorted((file for file in found if file.num_rows), key=lambda file: file.span)
    for file in files:
        if file.has_dates != files[0].has_dates:
            kinds = ("timestamps", "integers") if file.has_dates else ("integers", "timestamps")
            rule = f"{kinds[0]} cannot be ordered with the {kinds[1]} of {files[0].path}"
            raise DataError(file.path, rule, order_by or "")
    return Table(path, tuple(files))


def _inspect(
    path: Path, required: Mapping[str, str], optional: Mapping[str, str], order_by: str | None
) -> TableFile:
    with _explained(path, "not a readable Parquet file"):
        file = pq.ParquetFile(path)
    with file, _explained(path, "unreadable from row 0 on"):
        rows, schema = file.metadata.num_rows, file.schema_arrow
        if not rows:
            return TableFile(path, 0, frozenset(), {})
        _check_required(path, schema, required)
        usable, unknown = _optional_columns(file, optional)
        if order_by is None:
            return TableFile(path, rows, usable, unknown)
        has_dates = columns.is_date(schema.field(order_by).type)
        return TableFile(path, rows, usable, unknown, _span(file, order_by), has_dates)


@contextlib.contextmanager
def _explained(path: Path, rule: str) -> Iterator[None]:
    """Names the file of an error of Arrow's."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"{rule} ({error})") from error


def _check_required(path: Path, schema: pa.Schema, required: Mapping[str, str]):
    for column, kind in required.items():
        if column not in schema.names:
            named = any(part.startswith(f"{column}=") for part in path.parts)
            where = "; a folder's name alone has it" if named else ""
            raise DataError(path, f"the column is missing ({kind}){where}", column)
        if schema.names.count(column) > 1:
            raise DataError(path, "there may be only one column of this name", column)
        found = schema.field(column).type
        if not (columns.is_null(found) or columns.TYPES[kind](found)):
            raise DataError(path, f"the column must be {kind}, found {found}", column)


def _optional_columns(
    file: pq.ParquetFile, optional: Mapping[str, str]
) -> tuple[frozenset[str], dict[str, pa.DataType]]:
    """Those that can be used, and the types of those that cannot; neither, if without a value."""
    schema = file.schema_arrow
    there = [name for name in optional if schema.names.count(name) == 1]
    there = [name for name in there if not columns.is_null(schema.field(name).type)]
    usable = [name for name in there if columns.TYPES[optional[name]](schema.field(name).type)]
    unknown = {name: schema.field(name).type for name in there if name not in usable}
    return frozenset(name for name in usable if not is_blank(file, name)), unknown


def is_blank(file: pq.ParquetFile, column: str) -> bool:
    """Whether a column holds no value in any row: nulls and empty lists alone."""
    for batch in file.iter_batches(batch_size=1024, columns=[column]):
        (array,) = batch.columns
        held = columns.as_lists(array).flatten() if columns.is_list(array.type) else array
        if len(held) > held.null_count:
            return False
        if columns.is_list(array.type) and len(held):
            return False  # A null within a list is a fault to be named, not a blank.
    return True


def _span(file: pq.ParquetFile, column: str) -> tuple[int, int]:
    """First and last value of a column."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    last = max(index for index, size in enumerate(sizes) if size)
    first = next(iter(file.iter_batches(batch_size=1, columns=[column]))).column(0)
    final = file.read_row_group(last, columns=[column])[column].slice(sizes[last] - 1)
    ends = pa.chunked_array([first, *final.chunks])
    return tuple(to_numpy(ends, np.int64).tolist()) if not ends.null_count else (0, 0)
