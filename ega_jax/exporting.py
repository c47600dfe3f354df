"""Exports a mechanism by `jax.export`; see `artefact` for the format."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import export

import ega_jax
from ega_jax import artefact
from ega_jax.artefact import BOOK, LIST, Description
from ega_jax.errors import UserError
from ega_jax.lever_rules import checked_levers
from ega_jax.training.files import checksums, replacing_folder
from ega_jax.types import BookRequest, Request, Slate

if TYPE_CHECKING:
    from ega_jax.mechanism import Mechanism

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_KINDS = {LIST: Request, BOOK: BookRequest}


def export_mechanism(
    mechanism: "Mechanism",
    serve: Callable[..., Slate],
    folder: str | os.PathLike,
    batch_sizes: Sequence[int],
    platforms: Sequence[str],
    lengths: Mapping[str, int],
) -> None:
    """Writes a mechanism's functions, parameters and description as one folder.

    Args:
      mechanism: the mechanism.
      serve: `(system, networks, request, levers, rule)` to slates; levers and the parts of a
        `ChosenRule` are dictionaries.
      folder: the folder to write; an earlier export is replaced.
      batch_sizes: numbers of requests that a function takes.
      platforms: platforms that the functions run on, some of `PLATFORMS`.
      lengths: candidates of a request with a list of its own, organic items of one to a book.

    Raises:
      UserError: a number or a platform is invalid, or the folder holds something else.
    """
    _check(batch_sizes, platforms, lengths)
    parts = {"system": dataclasses.replace(mechanism.system, book=None)}
    parts |= {"networks": mechanism.networks}
    book = mechanism.system.book
    kinds = {kind: lengths[kind] for kind in _KINDS if kind == LIST or book is not None}
    path = Path(folder).expanduser().absolute()
    with replacing_folder(path, artefact.DESCRIPTION) as written:
        _save(written / artefact.PARAMETERS, parts)
        if book is not None:
            _save(written / artefact.BOOK_ARRAYS, book)
        for kind, length in kinds.items():
            function = jax.jit(_function(mechanism, serve, parts, kind))
            for rows in batch_sizes:
                given = _arguments(mechanism, parts, kind, rows, length)
                exported = export.export(function, platforms=tuple(platforms))(*given)
                file = written / artefact.function_file(kind, rows)
                file.write_bytes(exported.serialize())
        description = _describe(mechanism, batch_sizes, platforms, kinds, checksums(written))
        artefact.write_description(written, description)


def _check(
    batch_sizes: Sequence[int], platforms: Sequence[str], lengths: Mapping[str, int]
) -> None:
    """Refuses sizes that are no numbers of rows, and unknown platforms."""
    if not batch_sizes or not platforms:
        raise UserError("name at least one batch size and one platform")
    options = {LIST: "num_candidates", BOOK: "num_organic"}
    numbers = [("batch size", rows) for rows in batch_sizes]
    for name, number in [*numbers, *((options[kind], n) for kind, n in lengths.items())]:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UserError(f"{name} is {number!r}: it must be a whole number, at least 1")
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(f"no platform {platform!r}; there are {', '.join(PLATFORMS)}")


def _save(path: Path, tree: Any) -> None:
    """Writes the arrays of a tree by path, without pickle."""
    arrays = {name: np.asarray(x) for name, x in artefact.named_arrays(tree).items()}
    np.savez(path, allow_pickle=False, **arrays)


def _function(
    mechanism: "Mechanism", serve: Callable[..., Slate], parts: Any, kind: str
) -> Callable[..., dict[str, jax.Array]]:
    """The function that is exported: its arguments and results are dictionaries of arrays."""

    def serve_arrays(parameters, book, request, levers, rule):
        given = _like(parts, parameters)
        own = None if book is None else _like(mechanism.system.book, book)
        system = dataclasses.replace(given["system"], book=own)
        return vars(serve(system, given["networks"], _KINDS[kind](**request), levers, rule))

    return serve_arrays


def _like(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """A tree with its arrays replaced by those of the same paths."""
    leaves = [arrays[name] for name in artefact.named_arrays(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _arguments(
    mechanism: "Mechanism", parts: Any, kind: str, rows: int, length: int
) -> tuple[Any, ...]:
    """The shapes and types of the arguments of an exported function."""
    sizes = mechanism.request_sizes
    ids = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), np.int32)
    history = ids(sizes.history_length)
    request = {"history_poi": history, "history_creative": history}
    if kind == LIST:
        typed = {"item": np.int32, "is_ad": np.bool_, "bid": np.float32}
        request |= {n: jax.ShapeDtypeStruct((rows, length), dtype) for n, dtype in typed.items()}
    else:
        request |= {"organic": ids(length), "book": ids()}
    if sizes.context_width:
        request["context"] = jax.ShapeDtypeStruct((rows, sizes.context_width), np.float32)
    book = mechanism.system.book if kind == BOOK else None
    return (
        _shapes(artefact.named_arrays(parts)),
        None if book is None else _shapes(artefact.named_arrays(book)),
        request,
        _shapes(checked_levers(vars(mechanism.levers), {})),
        _shapes(vars(mechanism.chosen(mechanism.pricing.rules[0]))),
    )


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def _describe(
    mechanism: "Mechanism",
    batch_sizes: Sequence[int],
    platforms: Sequence[str],
    lengths: Mapping[str, int],
    files: dict[str, str],
) -> Description:
    """What the folder holds."""
    book, system = mechanism.system.book, mechanism.system
    needs = {rule: vars(mechanism.chosen(rule)) for rule in mechanism.pricing.rules}
    levers = checked_levers(vars(mechanism.levers), {})
    return Description(
        version=ega_jax.__version__,
        jax=jax.__version__,
        system=type(system).__name__,
        platforms=list(platforms),
        batch_sizes=sorted(set(batch_sizes)),
        lengths=dict(lengths),
        sizes=dataclasses.asdict(mechanism.request_sizes),
        rule=mechanism.rule,
        choices=list(mechanism.choices),
        rules={
            rule: {name: bool(x) for name, x in need.items() if name != "is_rule"}
            for rule, need in needs.items()
        },
        levers={name: [str(x.dtype), x.item()] for name, x in levers.items()},
        book=None
        if book is None
        else {
            "reads_search_bids": system.reads_search_bids,
            "takes_means": mechanism.takes_means,
            "widths": list(book.widths),
            "largest": book.largest,
        },
        files=files,
    )
