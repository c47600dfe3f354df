"""Serves an exported mechanism; needs jax, NumPy and flatbuffers only.

>>> from ega_jax import serving
>>> mechanism = serving.load("exported")  # doctest: +SKIP
>>> slate = mechanism.allocate(request, rule="gsp", reserve=0.2)  # doctest: +SKIP
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from ega_jax import artefact
from ega_jax.artefact import BOOK, LIST, Description
from ega_jax.errors import UserError
from ega_jax.lever_rules import check_book_levers, checked_settings
from ega_jax.request_rules import checked, checked_in_books

_HISTORY = ("history_poi", "history_creative")
FIELDS = {  # Kind of request -> its fields; a context may be left out.
    LIST: (*_HISTORY, "item", "is_ad", "bid", "context"),
    BOOK: (*_HISTORY, "organic", "book", "context"),
}
_PADDING = {"item": -1, "is_ad": False, "bid": 0.0, "organic": -1}  # Of rows shorter than allowed.


class Slate(NamedTuple):
    """The items shown for a batch of requests, as in `ega_jax.types.Slate`; NumPy arrays."""

    items: np.ndarray  # [B, K] int32 POI ids, -1 in empty slots.
    creatives: np.ndarray  # [B, K] int32 creative ids, -1 without creative.
    is_ad: np.ndarray  # [B, K] bool.
    bid: np.ndarray  # [B, K] float32, currency per click; 0 for organic items.
    price_per_click: np.ndarray  # [B, K] float32, currency per click; 0 for organic items.
    pctr: np.ndarray  # [B, K] float32, predicted click probability of the POI.
    pctr_image: np.ndarray  # [B, K] float32, predicted click probability of the creative.
    pcvr: np.ndarray  # [B, K] float32, predicted conversion probability, given a click.


@dataclasses.dataclass(frozen=True)
class ExportedMechanism:
    """A mechanism that was exported.

    A batch is padded to the nearest exported size; one larger than all is split. Each size is
    compiled when it is first needed.

    Attributes:
      description: sizes, rules and levers.
      parameters: parameters and items, by path.
      book: the arrays of the ad book, by path; None without a book.
      functions: the function of each kind of request and batch size.
    """

    description: Description
    parameters: Mapping[str, jax.Array]
    book: Mapping[str, Any] | None
    functions: Mapping[tuple[str, int], Callable[..., dict[str, jax.Array]]]

    @property
    def choices(self) -> tuple[str, ...]:
        """The payment rules available for serving."""
        return tuple(self.description.choices)

    def allocate(self, request: Any, rule: str | None = None, **levers: float) -> Slate:
        """Chooses and prices a slate for each request, as `Mechanism.allocate` does.

        Args:
          request: a `Request` or `BookRequest`, or a mapping with the same fields.
          rule: payment rule, one of `choices`; the mechanism's default if None.
          **levers: levers that replace the defaults; changing them does not recompile.

        Returns:
          The slates; a price per click is between 0 and the bid, and 0 for organic items.

        Raises:
          UserError: a request is invalid, lists more than what was exported, or names a book and
            there is none; the payment rule or a lever is unknown, or a lever is out of range.
        """
        kind, fields = self._checked(request)
        rule = self.description.rule if rule is None else rule
        charged, settings = checked_settings(
            rule, self.choices, self.description.default_levers, levers
        )
        if kind == BOOK:
            self._check_book(settings)
        count = len(fields["history_poi"])
        served = []
        for rows, size in batches(count, self.description.batch_sizes):
            batch = {name: x[rows] for name, x in fields.items()}
            served.append(self._served(kind, size, batch, settings, charged))
        return Slate(**{name: _joined(served, name)[:count] for name in Slate._fields})

    def with_book(self, book: Any) -> "ExportedMechanism":
        """The mechanism with other live bids, or with other ads of the same shapes.

        Args:
          book: an `AdBook`, such as `BookLedger.book`, or a mapping with the arrays of `book.npz`.

        Raises:
          UserError: there is no function for requests to books, or an array has another shape.
        """
        facts = self.description.book
        if self.book is None or facts is None:
            raise UserError("the mechanism was exported without a book: export one that has a book")
        arrays = artefact.named_arrays(dict(book) if isinstance(book, Mapping) else book)
        if found := artefact.different_array(arrays, self.book) or _too_large(book, facts):
            raise UserError(f"the book does not fit the exported one: {found}")
        return dataclasses.replace(self, book=arrays)

    def _checked(self, request: Any) -> tuple[str, dict[str, np.ndarray]]:
        """The kind and the valid fields of a request, padded to the exported length."""
        given = _fields_of(request)
        kind = BOOK if "book" in given or "organic" in given else LIST
        _check_fields(given, kind)
        fields: Any = SimpleNamespace(**given)
        sizes = self.description.request_sizes
        if kind == BOOK:
            books = None if self.book is None else self.book["book_start"].shape[0] - 1
            fields = vars(checked_in_books(fields, sizes, books))
        else:
            fields = vars(checked(fields, sizes))
        if not len(fields["history_poi"]):
            raise UserError("the batch holds no request")
        length = self.description.lengths[kind]
        return kind, {name: _padded(name, x, kind, length) for name, x in fields.items()}

    def _check_book(self, levers: Mapping[str, Any]) -> None:
        """Refuses levers that the book's order does not serve."""
        facts, book = self.description.book, self.book
        if facts is not None and book is not None and facts["reads_search_bids"]:
            check_book_levers(levers, float(book["smoothing"]), facts["takes_means"])

    def _served(
        self,
        kind: str,
        size: int,
        request: Mapping[str, np.ndarray],
        levers: Mapping[str, jax.Array],
        charged: str,
    ) -> dict[str, jax.Array]:
        """The slates of one batch of an exported size."""
        rules = self.description.rules
        rule = {
            "is_rule": {name: np.bool_(name == charged) for name in rules},
            **{name: np.bool_(needed) for name, needed in rules[charged].items()},
        }
        book = self.book if kind == BOOK else None
        return self.functions[kind, size](self.parameters, book, dict(request), dict(levers), rule)


def load(folder: str | os.PathLike) -> ExportedMechanism:
    """Loads what `Mechanism.export` wrote.

    Raises:
      UserError: the folder is no exported mechanism, was exported by another version or for other
        platforms, or a file is missing or changed; names the file.
    """
    folder = Path(folder).expanduser().absolute()
    description = artefact.read_description(folder)
    platform = export.default_export_platform()
    if platform not in description.platforms:
        raise UserError(
            f"{folder} was exported for {', '.join(description.platforms)} and this process runs "
            f"on {platform}: export the mechanism for {platform}"
        )
    functions = {
        (kind, rows): artefact.read_function(
            folder, artefact.function_file(kind, rows), description.jax
        )
        for kind in description.lengths
        for rows in description.batch_sizes
    }
    book = None
    if description.book is not None:
        book = artefact.read_arrays(folder / artefact.BOOK_ARRAYS)
    parameters = artefact.read_arrays(folder / artefact.PARAMETERS)
    return ExportedMechanism(description, parameters, book, functions)


def batches(count: int, sizes: list[int]) -> list[tuple[np.ndarray, int]]:
    """The rows `[size]` of each batch of an exported size; the last row fills the last batch.

    Examples:
      >>> [(rows.tolist(), size) for rows, size in batches(6, [1, 2, 4])]
      [([0, 1, 2, 3], 4), ([4, 5], 2)]
      >>> [(rows.tolist(), size) for rows, size in batches(3, [1, 2, 4])]
      [([0, 1, 2, 2], 4)]
    """
    found, start = [], 0
    while start < count:
        size = min((size for size in sizes if size >= count - start), default=max(sizes))
        found.append((np.minimum(np.arange(start, start + size), count - 1), size))
        start += size
    return found


def _too_large(book: Any, facts: Mapping[str, Any]) -> str:
    """Describes the first static size of a book above the exported one; "" if there is none."""
    for name in ("widths", "largest"):
        size = getattr(book, name, None)
        if size is not None and np.any(np.asarray(size) > facts[name]):
            return f"{name} is {size} and at most {facts[name]} was exported"
    return ""


def _joined(served: list[dict[str, jax.Array]], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(slates[name]) for slates in served])


def _fields_of(request: Any) -> dict[str, Any]:
    """The fields of a request that are given."""
    if not isinstance(request, Mapping):
        names = dict.fromkeys((*FIELDS[LIST], *FIELDS[BOOK]))
        request = {name: getattr(request, name) for name in names if hasattr(request, name)}
    return {name: x for name, x in request.items() if name != "context" or x is not None}


def _check_fields(given: Mapping[str, Any], kind: str) -> None:
    valid = FIELDS[kind]
    if unknown := [name for name in given if name not in valid]:
        raise UserError(f"a request has no field {unknown[0]!r}; fields: {', '.join(valid)}")
    if missing := [name for name in valid if name not in given and name != "context"]:
        raise UserError(f"the request lacks {missing[0]}; fields: {', '.join(valid)}")


def _padded(name: str, values: np.ndarray, kind: str, length: int) -> np.ndarray:
    """Pads the rows of a list to the exported length."""
    if name not in _PADDING:
        return values
    if values.shape[1] > length:
        option = "num_candidates" if kind == LIST else "num_organic"
        raise UserError(
            f"{name} has {values.shape[1]} entries per request and {length} were exported: export "
            f"with {option}={values.shape[1]}"
        )
    filling = ((0, 0), (0, length - values.shape[1]))
    return np.pad(values, filling, constant_values=_PADDING[name])
