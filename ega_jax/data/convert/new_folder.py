"""A folder that a conversion writes whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ega_jax.data.schema import Summary, validate
from ega_jax.data.tables import DataError


def require_free(out: Path) -> None:
    """Refuses a folder that holds anything.

    Raises:
      DataError: `out` exists and is not an empty folder.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(out, "already exists and is not an empty folder")


def write_folder(out: Path, write: Callable[[Path], None]) -> Summary:
    """Writes and validates beside `out`, or in `out` if it exists; then moves the files.

    Args:
      out: the folder to make, absent or empty.
      write: writes the files of a dataset into a folder.

    Returns:
      What the dataset holds.

    Raises:
      DataError: the files cannot be written there, or break a rule of their format.
    """
    exists = out.is_dir()
    part = (out if exists else out.parent) / f".{out.name}.{os.getpid()}"
    try:
        part.mkdir(parents=True)
        write(part)
        summary = validate(part, for_training=False)
        _move(part, out, exists)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise DataError(out, f"cannot be written ({error})") from error
        raise
    return summary


def _move(part: Path, out: Path, exists: bool) -> None:
    """Moves a folder's files into `out`, which stays the same folder if it exists.

    The working folder, the target of a symbolic link or a mounted disk cannot be replaced.
    """
    if not exists:
        os.replace(part, out)
        return
    names = [path.name for path in part.iterdir()]
    try:
        for name in names:
            os.replace(part / name, out / name)
        part.rmdir()
    except BaseException:
        for name in names:
            _remove(out / name)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
