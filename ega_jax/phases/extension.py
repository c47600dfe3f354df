"""New items for a workdir that is trained already: codes by its tokenizer, and other data.

Known items keep their codes and their scale, so that whatever was trained on them stays right. The
workdir changes at once or, after an error, not at all.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ega_jax.errors import UserError
from ega_jax.phases.pretraining import Pretraining, checksums
from ega_jax.phases.tokenization import add_items, num_tokens
from ega_jax.training.checkpoints import check_workdir, read_config, restore_tree

STAGING = ".extending"  # Folder of a workdir in which the new files are made.
BUILT = ("systems", "tuning")  # Folders with systems that use the workdir's generator.


def extend(old: Pretraining, path: str) -> dict[str, int]:
    """Binds a workdir to data with more items.

    Args:
      old: the workdir with the settings that it has.
      path: folder of the new data: the known items first and unchanged, then new ones.

    Returns:
      How many POIs and creatives were added.

    Raises:
      DataError: the new data break a rule of their format.
      UserError: known items are missing or changed; names the first.
      CheckpointMismatchError: the generator does not fit the new data.
    """
    staging, workdir = old.workdir / STAGING, old.workdir
    _recover(workdir, staging)
    settings = old.settings.changed({"data.path": path})
    new = dataclasses.replace(old, settings=settings, workdir=staging)
    check_known_items(old, new)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        added = {
            name: add_items(
                workdir / "tokenizers" / name,
                embeddings,
                settings.tokenizer,
                staging / "tokenizers" / name,
            )
            for name, embeddings in new.embeddings.items()
        }
        check_workdir(staging / "tokenizers", checksums(new.embeddings))
        if step := old.newest_step:
            restore_tree(old.checkpoints.path(step), jax.eval_shape(new.init))
        _commit(workdir, staging, path)
    finally:
        _recover(workdir, staging)
        shutil.rmtree(staging, ignore_errors=True)
    return added


def check_known_items(old: Pretraining, new: Pretraining) -> None:
    """Checks that new data start with the items that a workdir has tokens of.

    Raises:
      UserError: see `extend`.
    """
    share = new.settings.data.interactions
    if share:
        raise UserError(
            f"config.data.interactions is {share}: such tokens depend on what all users took, and "
            "no item can be added to them; choose another workdir"
        )
    place = old.workdir / "tokenizers"
    known = read_config(place) if (place / "config.json").exists() else {}
    if not known:
        raise UserError(f"{old.workdir} has no tokens yet: run experiments.pretrain with the data")
    names = known["data.path"]["embeddings_crc32"].keys()
    if names != new.embeddings.keys():
        raise UserError(
            f"{new.folder} has {' and '.join(new.embeddings)} items, but the tokens of "
            f"{old.workdir} are of {' and '.join(names)}"
        )
    counts = {name: num_tokens(place / name) for name in names}
    for name, embeddings in new.embeddings.items():
        if len(embeddings) < counts[name]:
            raise UserError(
                f"{new.folder} has {len(embeddings)} items of kind {name}, but the tokens of "
                f"{old.workdir} are of {counts[name]}: known items stay in the catalogue"
            )
    crc32 = known["data.path"]["embeddings_crc32"]
    for name, embeddings in new.embeddings.items():
        if _crc32(name, embeddings[: counts[name]]) != crc32[name]:
            raise UserError(_first_difference(old, new, name, counts[name], crc32[name]))


def _crc32(name: str, embeddings: np.ndarray) -> str:
    return checksums({name: embeddings})["data.path"]["embeddings_crc32"][name]


def _first_difference(old: Pretraining, new: Pretraining, name: str, count: int, crc32: str) -> str:
    """The message about known items with other embeddings.

    Names the first such item where the old data can tell: not if they were changed in place or are
    gone.
    """
    rule = "known items keep their codes, so their embeddings must be unchanged"
    if old.folder.is_dir() and not old.folder.samefile(new.folder):
        found, before = (each.embeddings[name][:count] for each in (new, old))
        if _crc32(name, before) == crc32:
            if found.shape != before.shape:
                width = f"embeddings of width {found.shape[1]}, {before.shape[1]} before"
                return f"{new.folder}, {name}: {width}; {rule}"
            row = np.flatnonzero((found != before).any(axis=1))[0]
            return f"{new.folder}, {name} {row}: another embedding than before; {rule}"
    return f"{new.folder}: some of the first {count} items of kind {name} changed; {rule}"


def _commit(workdir: Path, staging: Path, path: str) -> None:
    """Puts the new tokens and the new path in place; after an error all is as it was."""
    files = [workdir / "config.json", *system_configs(workdir)]  # They hold the data's path.
    configs = {file: read_config(file.parent) for file in files}
    before = {file: file.read_bytes() for file in configs}
    for number, config in enumerate(configs.values()):
        fields = flatten_dict(config, keep_empty_nodes=True) | {("data", "path"): path}
        _write(staging / f"{number}.json", unflatten_dict(fields))
    place = workdir / "tokenizers"
    place.rename(staging / "replaced")
    try:
        (staging / "tokenizers").rename(place)
        for number, file in enumerate(configs):
            os.replace(staging / f"{number}.json", file)
    except BaseException:
        if place.is_dir():
            place.rename(staging / "tokenizers")
        (staging / "replaced").rename(place)
        for file, content in before.items():
            file.write_bytes(content)
        raise


def system_configs(workdir: Path) -> list[Path]:
    """Returns the config files of the systems in a workdir, which use its generator."""
    return sorted(file for name in BUILT for file in workdir.glob(f"{name}/*/config.json"))


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _recover(workdir: Path, staging: Path) -> None:
    """Puts tokens back that a killed process had moved away, before new ones were in place."""
    if (staging / "replaced").is_dir() and not (workdir / "tokenizers").is_dir():
        (staging / "replaced").rename(workdir / "tokenizers")
