"""The format of an exported mechanism: functions as StableHLO, with their arguments beside them.

    artefact.json         what the folder holds, with a checksum of every other file
    parameters.npz        parameters and items, by path
    book.npz              the ad book, if the mechanism has one
    list-8.stablehlo      serves 8 requests with lists of their own; one file per batch size
    book-8.stablehlo      the same for requests to the book

This module needs jax, NumPy and flatbuffers only.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from ega_jax.errors import UserError
from ega_jax.request_rules import RequestSizes
from ega_jax.training.files import check_files, read_json

FORMAT = 2  # Of the folder; changes when this version cannot read older folders.
DESCRIPTION = "artefact.json"
PARAMETERS = "parameters.npz"
BOOK_ARRAYS = "book.npz"
LIST, BOOK = "list", "book"  # Kinds of requests: with a list of their own, to a book.


@dataclasses.dataclass(frozen=True)
class Description:
    """What a folder holds, as stated in `artefact.json`."""

    version: str  # Of ega_jax.
    jax: str  # Version of jax.
    system: str  # Class of the system.
    platforms: list[str]
    batch_sizes: list[int]  # Rising.
    lengths: dict[str, int]  # Kind of request -> candidates, or organic items, that a row holds.
    sizes: dict[str, int]  # Fields of `RequestSizes`.
    rule: str  # Default payment rule.
    choices: list[str]  # Payment rules that may be charged.
    rules: dict[str, dict[str, bool]]  # Payment rule -> its needs, see `mechanism.ChosenRule`.
    levers: dict[str, list[Any]]  # Lever -> dtype and default value.
    book: dict[str, Any] | None  # Facts about the ad book, see `exporting`.
    files: dict[str, str]  # File -> checksum.

    @property
    def request_sizes(self) -> RequestSizes:
        """The sizes that decide which requests are valid."""
        return RequestSizes(**self.sizes)

    @property
    def default_levers(self) -> dict[str, np.ndarray]:
        """The levers' default values in their types."""
        return {name: np.asarray(value, dtype) for name, (dtype, value) in self.levers.items()}


def write_description(folder: Path, description: Description) -> None:
    """Writes `artefact.json`."""
    content = {"format": FORMAT} | dataclasses.asdict(description)
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n")


def read_description(folder: Path) -> Description:
    """Reads `artefact.json` and checks that every file of the folder is as it was exported.

    Raises:
      UserError: the folder is no exported mechanism, was exported in another format, or a file is
        missing or changed; names the file.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} is no exported mechanism: it has no {DESCRIPTION}")
    content = read_json(path)
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{folder} was exported in format {found} and this version of ega_jax reads format "
            f"{FORMAT}: export the mechanism again"
        )
    try:
        description = Description(**content)
    except TypeError as error:
        raise UserError(f"{path} is damaged: export the mechanism again ({error})") from error
    check_files(folder, description.files, str(folder))
    return description


def function_file(kind: str, rows: int) -> str:
    """The name of the file of a function."""
    return f"{kind}-{rows}.stablehlo"


def read_function(folder: Path, file: str, version: str) -> Callable[..., dict[str, jax.Array]]:
    """Reads an exported function, which compiles when it is first called.

    Args:
      folder: the exported mechanism.
      file: the name of the file.
      version: the version of jax that exported it.

    Raises:
      UserError: this version of jax cannot read it.
    """
    try:
        function = export.deserialize(bytearray((folder / file).read_bytes()))
    except ValueError as error:
        raise UserError(
            f"{folder / file} was exported by jax {version}, and jax {jax.__version__} cannot read "
            f"it: export the mechanism again ({str(error).splitlines()[0]})"
        ) from error
    return jax.jit(function.call)


def named_arrays(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by path, such as `system/items/poi_embedding`.

    Examples:
      >>> named_arrays({"a": {"b": 1, "c": None}, "d": 2})
      {'a/b': 1, 'd': 2}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def read_arrays(path: Path) -> dict[str, jax.Array]:
    """Reads arrays by name onto the first device."""
    with np.load(path) as arrays:
        return {name: jax.numpy.asarray(arrays[name]) for name in arrays.files}


def different_array(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Describes the first array of another shape or type than expected; "" if there is none."""
    described = lambda x: f"{x.dtype}{list(np.shape(x))}"
    shown = lambda arrays, name: described(arrays[name]) if name in arrays else "none"
    for name in [*expected, *(name for name in found if name not in expected)]:
        if shown(found, name) != shown(expected, name):
            return f"{name} is {shown(found, name)} instead of {shown(expected, name)}"
    return ""
