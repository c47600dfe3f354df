"""Saving and restoring checkpoints; the only module that uses orbax.

A saved folder holds a `tree` of arrays and its JSON `metadata`; a phase's checkpoint adds
`batches`, the data iterator's state. Saves block. A folder gets its final name only when it is
complete, so a partial save by a killed process is never read as a checkpoint.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from ega_jax.errors import UserError
from ega_jax.training.files import read_json, write_json

KEPT = 2  # Newest checkpoints of a phase that stay on disk.


class CheckpointMismatchError(UserError):
    """A saved tree lacks an expected field, or a field has another shape or type."""


class ConfigMismatchError(UserError):
    """A workdir was created with another config."""


class PhaseCheckpoints:
    """The checkpoints of one phase, one folder per step."""

    def __init__(self, folder: Path):
        self._folder = Path(folder).absolute()

    def path(self, step: int) -> Path:
        """Returns the folder of the checkpoint after `step` steps."""
        return self._folder / str(step)

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or `None` if there is none."""
        return max(self._complete_steps(), default=None)

    def save(
        self,
        step: int,
        state: Any,
        batches: grain.DatasetIterator,
        metadata: Mapping[str, Any],
    ) -> None:
        """Saves the state after `step` steps with its data iterator, and drops old checkpoints."""
        _save(self.path(step), state, metadata, batches=grain.checkpoint.CheckpointSave(batches))
        if jax.process_index() == 0:
            kept = {str(kept) for kept in sorted(self._complete_steps())[-KEPT:]}
            for child in self._folder.iterdir():
                if child.is_dir() and child.name not in kept:
                    shutil.rmtree(child)

    def restore(
        self, step: int, target: Any, batches: grain.DatasetIterator
    ) -> tuple[Any, dict[str, Any]]:
        """Restores a step's state and metadata, and sets `batches` to its position at that step.

        Raises:
          CheckpointMismatchError: the checkpoint does not fit `target`.
        """
        path = self.path(step)
        state = restore_tree(path, target)
        _restore(path, batches=grain.checkpoint.CheckpointRestore(batches))
        return state, read_metadata(path)

    def _complete_steps(self) -> list[int]:
        folders = self._folder.iterdir() if self._folder.is_dir() else ()
        return [int(f.name) for f in folders if f.name.isdecimal() and is_complete(f)]


def save_tree(path: str | os.PathLike, tree: Any, metadata: Mapping[str, Any]) -> None:
    """Saves a tree of arrays with its JSON metadata as the folder `path`.

    An existing folder is replaced only after the new tree is complete: a failed save loses nothing.
    """
    path = Path(path).absolute()
    written, replaced = (path.with_name(f"{path.name}.{name}") for name in ("new", "old"))
    _save(written, tree, metadata)
    if jax.process_index() == 0:
        shutil.rmtree(replaced, ignore_errors=True)
        if path.exists():
            path.rename(replaced)
        written.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    multihost_utils.sync_global_devices(str(path))


def restore_tree(path: str | os.PathLike, target: Any) -> Any:
    """Restores a saved tree of arrays.

    Args:
      path: the saved folder, or a phase's checkpoint.
      target: the expected tree of arrays or `jax.ShapeDtypeStruct`s. A leaf with a sharding is
        restored to that sharding, any other to the first device, uncommitted.

    Returns:
      The saved arrays, in the structure of `target`.

    Raises:
      FileNotFoundError: there is no complete saved tree at `path`.
      CheckpointMismatchError: a field is missing, or has another shape or type.
    """
    path = Path(path).absolute()
    found = _read_json(path)["fields"]
    differences = _differences(found, _fields(target), show=str)
    if differences:
        raise CheckpointMismatchError(
            f"{path} does not fit what is being restored:\n" + "\n".join(differences)
        )

    def placed(x: Any, leaf: Any) -> jax.Array:
        sharding = getattr(leaf, "sharding", None)
        if not leaf.size:  # See `_save`.
            return jnp.zeros(leaf.shape, leaf.dtype, device=sharding)
        return jnp.asarray(x) if sharding is None else x

    return jax.tree.map(placed, _stored(path, target), target)


def read_tree(path: str | os.PathLike) -> Any:
    """Returns a saved tree as nested dictionaries of arrays on the first device.

    Raises:
      FileNotFoundError: there is no complete saved tree at `path`.
    """
    return restore_tree(path, unflatten_dict(saved_shapes(path), sep="/"))


def read_arrays(path: str | os.PathLike) -> Any:
    """Returns a saved tree as nested dictionaries of NumPy arrays, in double precision if saved so.

    Raises:
      FileNotFoundError: there is no complete saved tree at `path`.
    """
    shapes = unflatten_dict(saved_shapes(path), sep="/")
    empty = lambda x, leaf: x if leaf.size else np.zeros(leaf.shape, leaf.dtype)  # See `_save`.
    return jax.tree.map(empty, _stored(Path(path).absolute(), shapes), shapes)


def saved_shapes(path: str | os.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of a saved tree's leaves by path, as `params/dense/kernel`.

    Raises:
      FileNotFoundError: there is no complete saved tree at `path`.
    """
    found = {}
    for name, described in _read_json(Path(path).absolute())["fields"].items():
        dtype, _, shape = described.partition("[")
        found[name] = jax.ShapeDtypeStruct(json.loads(f"[{shape}"), dtype)
    return found


def is_complete(path: str | os.PathLike) -> bool:
    """Returns whether `path` holds a complete saved tree."""
    return (Path(path) / "tree").is_dir() and (Path(path) / "metadata").is_dir()


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the JSON metadata saved with a tree."""
    return _read_json(Path(path).absolute())["metadata"]


def check_workdir(
    workdir: str | os.PathLike, config: Mapping[str, Any], free: Iterable[str] = ()
) -> None:
    """Binds a workdir to a config: writes `config.json`, or compares it with the one there.

    If the workdir and its folders hold no file but `config.json`, nothing was made with the old
    config yet: the workdir is bound to the new one.

    Args:
      workdir: the folder; made if absent.
      config: nested JSON-like settings.
      free: dotted names of the fields that may change from run to run (`data.path`); a group's
        name frees all its fields. Their new values replace the old ones in the file.

    Raises:
      ConfigMismatchError: another field differs; names each with both values.
    """
    path = Path(workdir) / "config.json"
    config = json.loads(json.dumps(config))
    if path.exists():
        found, expected = _flatten(read_config(workdir)), _flatten(config)
        free = tuple(free)
        differences = _differences(_without(found, free), _without(expected, free))
        if differences and any(map(_is_made, path.parent.rglob("*"))):
            raise ConfigMismatchError(
                f"{workdir} was created with another config; restore these fields or choose "
                "another workdir:\n" + "\n".join(differences)
            )
    write_json(path, config)


def _is_made(path: Path) -> bool:
    """Whether a path in a workdir is a file other than a `config.json`."""
    return path.is_file() and path.name != "config.json"


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """Returns the config in a workdir's `config.json`; see `read_json` for errors."""
    return read_json(Path(workdir) / "config.json")


def _save(path: Path, tree: Any, metadata: Mapping[str, Any], **items: Any) -> None:
    described = {"fields": _fields(tree), "metadata": dict(metadata)}
    shared = lambda x: isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
    tree = jax.tree.map(lambda x: x if shared(x) else np.asarray(x), tree)  # Each host has all.
    tree = jax.tree.map(lambda x: x if x.size else np.zeros(1, x.dtype), tree)  # Orbax drops empty.
    items |= {"tree": ocp.args.StandardSave(tree), "metadata": ocp.args.JsonSave(described)}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute(), ocp.args.Composite(**items), force=True)


def _restore(path: Path, **items: Any) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, ocp.args.Composite(**items))


def _stored(path: Path, target: Any) -> Any:
    """The leaves as they were written, in the structure of `target`; see `_save` for empty ones."""
    return _restore(path, tree=ocp.args.StandardRestore(jax.tree.map(_abstract, target)))["tree"]


def _read_json(path: Path) -> dict[str, Any]:
    if not is_complete(path):
        raise FileNotFoundError(f"no complete checkpoint at {path}")
    return _restore(path, metadata=ocp.args.JsonRestore())["metadata"]


def _fields(tree: Any) -> dict[str, str]:
    """Describes each leaf by its path: `{"params/dense/kernel": "float32[3, 4]"}`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct | np.ndarray:
    """Returns orbax's restore target: shape and sharding of a device array, or a host array."""
    if not leaf.size:  # See `_save`.
        return np.empty(1, leaf.dtype)
    if sharding := getattr(leaf, "sharding", None):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return np.empty(leaf.shape, leaf.dtype)


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(dict(config), keep_empty_nodes=True, sep=".")


def _without(fields: Mapping[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    groups = tuple(f"{name}." for name in free)
    return {k: v for k, v in fields.items() if k not in free and not k.startswith(groups)}


def _differences(
    found: Mapping[str, Any], expected: Mapping[str, Any], show: Callable[[Any], str] = repr
) -> list[str]:
    """Lists the fields that differ as `field: found X, expected Y`; 1 and 1.0 are equal."""
    shown = lambda fields, name: show(fields[name]) if name in fields else "nothing"
    return [
        f"  {name}: found {shown(found, name)}, expected {shown(expected, name)}"
        for name in sorted(found.keys() | expected.keys())
        if name not in found or name not in expected or found[name] != expected[name]
    ]
