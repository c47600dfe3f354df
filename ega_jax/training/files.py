"""Files that several processes share: written whole or not at all, and by one at a time."""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ega_jax.errors import UserError

if sys.platform != "win32":
    import fcntl


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file.

    Raises:
      UserError: it is none; names the file.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to that becomes `path` at the end; after an error nothing is changed.

    Args:
      path: a file, there already or not.

    Yields:
      A path beside it that nobody else has, with the same suffix.
    """
    written = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield written
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Keeps other processes that ask for the same folder out, and leaves nothing in it.

    Processes of one host, that is: over a network's file system those of others are not kept out,
    nor is anybody on drives without locks and on Windows.

    Args:
      folder: which must exist.
      wait: for another process that has it.

    Yields:
      Whether the folder is this process's; only without `wait` it may not be.
    """
    if sys.platform == "win32":
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(handle, wait)
    finally:
        os.close(handle)  # Which also gives the folder back.


def _lock(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
