"""Converting structs to trees of arrays with a JSON description, so that they can be saved.

A frozen struct mixes arrays and static fields. `describe` returns its classes and static fields,
`to_tree` returns its arrays, and `rebuild` makes the struct again from both.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from ega_jax.errors import UserError


def to_tree(value: Any) -> Any:
    """Returns a struct's arrays as nested dictionaries, without the parts that hold no array."""
    parts = _parts(value)
    if parts is None:
        return value
    trees = {name: to_tree(part) for name, part in parts.items() if part is not None}
    return {name: tree for name, tree in trees.items() if not (isinstance(tree, dict) and not tree)}


def describe(value: Any) -> Any:
    """Returns a struct's classes and static fields as JSON; `None` for an array."""
    parts = _parts(value)
    if parts is None:
        return None if value is not None else {"kind": "none"}
    described = {name: describe(part) for name, part in parts.items()}
    if isinstance(value, Mapping):
        return {"kind": "dict", "parts": described}
    if isinstance(value, tuple):
        return {"kind": "tuple", "parts": described}
    static = {field.name: _plain(getattr(value, field.name)) for field in _static_fields(value)}
    return {"kind": _path_of(type(value)), "parts": described, "static": static}


def rebuild(description: Any, tree: Any) -> Any:
    """Rebuilds a struct from the results of `describe` and `to_tree`.

    Raises:
      UserError: this version lacks one of the classes; names it.
    """
    if description is None:
        return tree
    if description["kind"] == "none":
        return None
    parts = {
        name: rebuild(part, (tree or {}).get(name)) for name, part in description["parts"].items()
    }
    if description["kind"] == "dict":
        return parts
    if description["kind"] == "tuple":
        return tuple(parts.values())
    static = {name: _typed(value) for name, value in description["static"].items()}
    return _class_at(description["kind"])(**parts, **static)


def _parts(value: Any) -> dict[str, Any] | None:
    """Returns the children of a node by name, `None` for a leaf."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return {str(place): part for place, part in enumerate(value)}
    if dataclasses.is_dataclass(value):
        static = {field.name for field in _static_fields(value)}
        fields = (field.name for field in dataclasses.fields(value))
        return {name: getattr(value, name) for name in fields if name not in static}
    return None


def _static_fields(value: Any) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(value) if not f.metadata.get("pytree_node", True)]


def _plain(value: Any) -> Any:
    """Returns a static field as JSON; a dataclass becomes its class path and its init fields."""
    if dataclasses.is_dataclass(value):
        fields = (field.name for field in dataclasses.fields(value) if field.init)
        made_from = {name: _plain(getattr(value, name)) for name in fields}
        return {"kind": _path_of(type(value)), "fields": made_from}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _typed(value: Any) -> Any:
    """Undoes `_plain`."""
    if isinstance(value, dict):
        fields = {name: _typed(part) for name, part in value["fields"].items()}
        return _class_at(value["kind"])(**fields)
    return tuple(_typed(part) for part in value) if isinstance(value, list) else value


def _path_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class_at(path: str) -> type:
    """Imports the dataclass at a path like `ega_jax.auction.ega:EGA`."""
    module, _, name = path.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"what was saved needs {path}, which this version has not") from error
    if not dataclasses.is_dataclass(kind):
        raise UserError(f"what was saved names {path}, which is no dataclass")
    return kind
