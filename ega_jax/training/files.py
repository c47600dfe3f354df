"""Files that several processes share: atomic writes, checksums and locks on folders."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
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


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as a whole, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as written:
        written.write_text(json.dumps(value, indent=2) + "\n")


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
def replacing_folder(path: Path, mark: str) -> Iterator[Path]:
    """Writes a whole folder: the caller fills a temporary one, which is renamed to `path`.

    If the caller raises, `path` is unchanged and the temporary folder is deleted.

    Args:
      path: the folder to write; an earlier one is replaced.
      mark: a file of every such folder. An existing folder without it is not replaced.

    Yields:
      The temporary folder: a unique path in the same folder.

    Raises:
      UserError: `path` exists and is neither empty nor such a folder.
    """
    is_other = path.exists() and not (path / mark).is_file()
    if is_other and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and has no {mark}: choose another folder")
    written = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    written.mkdir(parents=True)
    try:
        yield written
        if path.exists():
            path.rename(replaced := written.with_name(f"{written.name}.old"))
            written.rename(path)
            shutil.rmtree(replaced)
        else:
            written.rename(path)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path from there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in files}


def check_files(folder: Path, expected: Mapping[str, str], name: str) -> None:
    """Checks files against the result of `checksums`; other files are not looked at.

    Args:
      folder: the folder that holds the files.
      expected: checksum of each file.
      name: what the folder is called in errors.

    Raises:
      UserError: a file is missing, or has other content; names the first one.
    """
    for file, checksum in expected.items():
        if not (folder / file).is_file():
            raise UserError(f"{name} is incomplete: {file} is missing")
        if _checksum(folder / file) != checksum:
            raise UserError(f"{name} is damaged: {file} is not as it was written")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
