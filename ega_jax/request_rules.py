"""Validation of requests; error messages name the first invalid value.

A request is any object with the fields of `Request` or `BookRequest`, so that `ega_jax.serving`
validates without the packages that the models need.
"""

import dataclasses
import numbers
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from ega_jax.amounts import LARGEST, is_amount
from ega_jax.errors import UserError

_SHAPED_AS = {"is_ad": "item", "bid": "item", "history_creative": "history_poi"}
# Valid NumPy dtype kinds, and what they mean; those of ids are "iu".
_KINDS = {"is_ad": "bu", "bid": "fiu", "context": "fiu"}
_MEANING = {
    "is_ad": "flags are True or False",
    "bid": "bids are numbers",
    "context": "a context is made of numbers",
}
_ENTRIES = dict.fromkeys(("item", "is_ad", "bid"), "candidate") | {"context": "value"}
_DTYPES = {"is_ad": bool, "bid": np.float32, "context": np.float32}  # Ids are int32.


AnyFields = TypeVar("AnyFields")


@dataclasses.dataclass(frozen=True)
class RequestSizes:
    """The sizes that decide which requests are valid."""

    pois: int  # P
    creatives: int  # R
    history_length: int  # T, the number of behaviours that the models read.
    context_width: int = 0  # X, the number of values of the context that the models read.


def checked(request: AnyFields, sizes: RequestSizes) -> AnyFields:
    """Validates a batch of requests and converts it to the types of `Request`.

    Args:
      request: a batch with the fields of `Request`, on any device or as lists; histories may have
        any length.
      sizes: the sizes of the catalogue and of what the models read.

    Returns:
      The batch as NumPy arrays, not committed to a device. Histories are `[B, T]`: the last T
      behaviours, padded on the left.

    Raises:
      UserError: shapes do not match, a value has the wrong type, an id is out of range, an ad's bid
        is negative, NaN or above `LARGEST`, an organic item has a bid other than 0, an ad or an
        organic item is listed twice, a request has no candidates, or its context is missing, of
        another width or not finite.
    """
    host = _arrays(request)
    _check_shapes(host)
    _check_context(host.context, len(host.item), sizes.context_width)
    _check_ids(host, sizes)
    _check_candidates(host)
    shown = host.item >= 0
    arrays: Any = vars(host) | {
        "is_ad": shown & host.is_ad.astype(bool),
        "bid": np.where(shown, host.bid, 0.0),
    }
    return type(request)(**_typed(arrays, sizes.history_length))


def checked_in_books(request: AnyFields, sizes: RequestSizes, books: int | None) -> AnyFields:
    """Validates a batch of requests with the fields of `BookRequest`; see `checked`.

    Args:
      request: the batch.
      sizes: the sizes of the catalogue and of what the models read.
      books: number of books of the forest; None if there is no book.

    Raises:
      UserError: there is no book, a request names none of the forest, shapes do not match, a value
        has the wrong type, an id is out of range, an organic item is listed twice, or a context is
        missing, of another width or not finite.
    """
    if books is None:
        raise UserError("a request names a book and the system has none: see Mechanism.with_book")
    host = _arrays(request)
    rows = {"book": (host.organic.shape[0],), "history_poi": (host.organic.shape[0], None)}
    for field, shape in rows.items():
        found = getattr(host, field).shape
        if host.organic.ndim != 2 or len(found) != len(shape) or found[0] != shape[0]:
            raise UserError(
                f"{field} is {list(found)} and organic {list(host.organic.shape)}: both need one "
                "row per request"
            )
    if host.history_creative.shape != host.history_poi.shape:
        raise UserError(
            f"history_creative is {list(host.history_creative.shape)} and history_poi "
            f"{list(host.history_poi.shape)}: both need the same shape"
        )
    _check_context(host.context, len(host.organic), sizes.context_width)
    _check_ids(host, sizes)
    number = host.book[:, None]
    _refuse((number < 0) | (number >= books), "book", number, f"outside [0, {books})")
    _refuse_repeated("organic item", host.organic, np.zeros(host.organic.shape, bool))
    return type(request)(**_typed(vars(host), sizes.history_length))


def _typed(arrays: Mapping[str, np.ndarray | None], history_length: int) -> dict[str, Any]:
    """The fields of a request in their types, with histories of the length that models read."""
    found = {name: array for name, array in arrays.items() if array is not None}
    for name in ("history_poi", "history_creative"):
        found[name] = _last(found[name], history_length)
    return {name: array.astype(_DTYPES.get(name, np.int32)) for name, array in found.items()}


def _last(history: np.ndarray, length: int) -> np.ndarray:
    """The last behaviours `[B, length]` of histories, padded on the left."""
    return np.hstack([np.full((len(history), length), -1), history])[:, -length:]


def _arrays(request: Any) -> Any:
    """The fields of a request as arrays of numeric types; a context may be None or left out."""
    given = {"context": None} | vars(request)
    is_left_out = lambda name: name == "context" and given[name] is None
    return SimpleNamespace(**{n: x if is_left_out(n) else _rows(n, x) for n, x in given.items()})


def _rows(name: str, values: Any) -> np.ndarray:
    """Converts a field to an array of a numeric type."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name}: rows of unequal length; pad ids with -1, bids with 0") from error
    kinds = _KINDS.get(name, "iu")
    if not array.size or array.dtype.kind in kinds or (name == "is_ad" and _is_binary(array)):
        return array
    meaning = _MEANING.get(name, "ids are integers")
    if array.dtype.kind not in "OSU":
        raise UserError(f"{name} is {array.dtype}: {meaning}")
    return _numbers(name, np.array(values, dtype=object), meaning)


def _is_binary(array: np.ndarray) -> bool:
    """Whether an array holds only 0 and 1."""
    return array.dtype.kind in "if" and bool(np.isin(array, (0, 1)).all())


def _numbers(name: str, values: np.ndarray, meaning: str) -> np.ndarray:
    """Converts an array of Python objects to numbers; an error names the first invalid entry."""
    kinds = {"is_ad": bool | np.bool_, "bid": numbers.Real, "context": numbers.Real}
    kind = kinds.get(name, numbers.Integral)
    for place, value in np.ndenumerate(values):
        if not isinstance(value, kind) or (name != "is_ad" and isinstance(value, bool)):
            axes = "request", _ENTRIES.get(name, "behaviour")
            where = [f"{axis} {number}" for axis, number in zip(axes, place, strict=False)]
            raise UserError(f"{', '.join([*where, name])} {value!r}: {meaning}")
    try:
        return values.astype({"is_ad": bool, "bid": float, "context": float}.get(name, np.int64))
    except OverflowError as error:
        raise UserError(f"{name} holds a number of more than 64 bits ({error})") from error


def _check_shapes(host: Any) -> None:
    for field, name in _SHAPED_AS.items():
        shape, expected = getattr(host, field).shape, getattr(host, name).shape
        if shape != expected or len(shape) != 2 or shape[0] != len(host.item):
            raise UserError(
                f"{field} is {list(shape)} and {name} {list(expected)} in a batch of "
                f"{host.item.shape[0] if host.item.ndim else 0}: both need one row per request, "
                "all rows of one length"
            )


def _check_context(context: np.ndarray | None, rows: int, width: int) -> None:
    """Holds if contexts are `[rows, width]` and finite as float32, or absent and of no width."""
    if context is None:
        if width:
            raise UserError(f"context is missing: the models read {width} values a request")
        return
    if not width:
        raise UserError("context is given, but the models were trained on a log without a context")
    if context.shape != (rows, width):
        raise UserError(
            f"context is {list(context.shape)}, but a batch of {rows} needs [{rows}, {width}]"
        )
    with np.errstate(over="ignore"):
        _refuse(~np.isfinite(context.astype(np.float32)), "context", context, "not finite")


def _check_ids(host: Any, sizes: RequestSizes) -> None:
    limits = dict.fromkeys(("item", "organic", "history_poi"), sizes.pois)
    limits |= {"history_creative": sizes.creatives}
    for name in [name for name in limits if name in vars(host)]:
        ids, limit = getattr(host, name), limits[name]
        _refuse((ids < -1) | (ids >= limit), name, ids, f"outside [0, {limit})")


def _check_candidates(host: Any) -> None:
    shown, is_ad = host.item >= 0, host.is_ad.astype(bool)
    _refuse(
        shown & is_ad & ~is_amount(host.bid), "ad", host.bid, f"not a bid from 0 to {LARGEST:g}"
    )
    _refuse(shown & ~is_ad & (host.bid != 0), "organic item", host.bid, "not 0, the required bid")
    _refuse_repeated("candidate", host.item, is_ad)
    empty = np.flatnonzero(~shown.any(axis=-1))
    if empty.size:
        raise UserError(f"request {empty[0]} has no candidates")


def _refuse_repeated(name: str, ids: np.ndarray, kind: np.ndarray) -> None:
    """Refuses ids `[B, N]` that an earlier entry of the same kind `[B, N]` has."""
    same = (ids[..., :, None] == ids[..., None, :]) & (ids >= 0)[..., None]
    same &= kind[..., :, None] == kind[..., None, :]
    _refuse(np.tril(same, -1).any(axis=-1), name, ids, "listed twice")


def _refuse(wrong: np.ndarray, name: str, values: np.ndarray, rule: str) -> None:
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        raise UserError(f"request {row}, {name} {place}: {values[row, place]} is {rule}")
