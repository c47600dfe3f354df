"""Arrow columns as NumPy arrays, whichever types their writer chose.

Writers disagree: a list is `list`, `large_list`, `list_view`, `fixed_size_list` or a tensor
extension, a word is plain or dictionary-encoded, a flag is a boolean or 0/1, a time is an integer
or a timestamp. All of them hold the same values, so all are read.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values below extensions and dictionaries."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    return plain_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def is_integer(kind: pa.DataType) -> bool:
    """Whether values are whole numbers."""
    kind = plain_type(kind)
    return pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)


def is_number(kind: pa.DataType) -> bool:
    """Whether values are numbers of any kind."""
    kind = plain_type(kind)
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def is_flag(kind: pa.DataType) -> bool:
    """Whether values are booleans, or integers that may be 0 and 1."""
    return pa.types.is_boolean(plain_type(kind)) or is_integer(kind)


def is_date(kind: pa.DataType) -> bool:
    """Whether values are dates or timestamps."""
    kind = plain_type(kind)
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def is_time(kind: pa.DataType) -> bool:
    """Whether values are seconds as integers, dates or timestamps."""
    return is_integer(kind) or is_date(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are texts, or bytes or numbers that can be read as such."""
    kind = plain_type(kind)
    texts = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
    )
    return is_number(kind) or any(is_one(kind) for is_one in texts)


def is_tags(kind: pa.DataType) -> bool:
    """Whether values are texts, lists of texts, or lists of such lists."""
    kind = plain_type(kind)
    return is_text(kind) or is_null(kind) or (is_list(kind) and is_tags(kind.value_type))


def is_null(kind: pa.DataType) -> bool:
    """Whether the type is that of a column without any value."""
    return pa.types.is_null(plain_type(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, of any layout."""
    kind = plain_type(kind)
    layouts = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(is_layout(kind) for is_layout in layouts)


def _list_of(is_value: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    """Tests for lists of some values; a list type without values will do."""

    def is_list_of_values(kind: pa.DataType) -> bool:
        if not is_list(kind):
            return False
        inner = plain_type(kind).value_type
        return is_null(inner) or is_value(inner)

    return is_list_of_values


# What a column is required to be -> whether a type is that.
TYPES: dict[str, Callable[[pa.DataType], bool]] = {
    "an integer": is_integer,
    "an integer or a timestamp": is_time,
    "a boolean": is_flag,
    "a list of integers": _list_of(is_integer),
    "a list of floats": _list_of(is_number),
    "a list of booleans": _list_of(is_flag),
    "a list of integers or timestamps": _list_of(is_time),
    "a float, or a list of floats": lambda kind: is_number(kind) or _list_of(is_number)(kind),
    "a text": is_text,
    "a text, or a list of texts": is_tags,
}


def plain(array: pa.Array) -> pa.Array:
    """The values below extensions and dictionaries."""
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    return plain(array.dictionary_decode()) if pa.types.is_dictionary(array.type) else array


def to_numpy(column: pa.ChunkedArray, dtype: Any) -> np.ndarray:
    """`[rows]` a column of numbers, flags or times without nulls; times in microseconds."""
    chunks = [values_of(chunk, dtype) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.zeros(0, dtype), *chunks])


def values_of(array: pa.Array, dtype: Any) -> np.ndarray:
    """`[rows]` the values of one array; see `to_numpy`."""
    array = plain(array)
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan if np.dtype(dtype).kind == "f" else 0, dtype)
    if is_date(array.type):
        array = array.cast(pa.timestamp("us", getattr(array.type, "tz", None)), safe=False)
        array = array.cast(pa.int64())
    elif pa.types.is_decimal(array.type):
        array = _decoded(array, whole=np.dtype(dtype).kind == "i")
    elif pa.types.is_boolean(array.type):
        array = array.fill_null(False)  # A null is refused, but by its row, not while decoding.
    with np.errstate(over="ignore", invalid="ignore"):  # What does not fit becomes infinite.
        return array.to_numpy(zero_copy_only=False).astype(dtype, copy=False)


def _decoded(decimals: pa.Array, whole: bool) -> pa.Array:
    """Decimals as float64, or int64 if `whole` and all fit; a rule on ids refuses what does not."""
    floats = decimals.cast(pa.float64())
    fit = np.abs(floats.to_numpy(zero_copy_only=False)).max(initial=0) < 2.0**63
    return decimals.cast(pa.int64()) if whole and fit else floats


def as_lists(array: pa.Array) -> pa.ListArray | pa.LargeListArray:
    """An array of lists of any layout, or of nulls alone, as lists with offsets."""
    array = plain(array)
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.list_(pa.null()))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return array
    return array.cast(pa.large_list(array.type.value_type))
