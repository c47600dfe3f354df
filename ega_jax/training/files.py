"""Files that several processes share: atomic writes and locks on folders."""

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
      UserError: the file is not valid JSON; names it.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replaces a file atomically: the caller writes a temporary file, which is renamed to `path`.

    If the caller raises, `path` is unchanged and the temporary file is deleted.

    Args:
      path: the file to write; it may exist.

    Yields:
      The temporary file: a unique path in the same folder, with the same suffix.
    """
    written = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield written
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Locks a folder against other processes that call this; writes no file.

    The lock holds between processes of one host. It has no effect between hosts that share a
    network file system, on file systems without locks, and on Windows.

    Args:
      folder: must exist.
      wait: whether to wait if another process holds the lock.

    Yields:
      Whether this process holds the lock; always true with `wait`.
    """
    if sys.platform == "win32":
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(handle, wait)
    finally:
        os.close(handle)  # Closing also releases the lock.


def _lock(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
