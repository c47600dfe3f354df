"""One file with a trained mechanism, for people who do not have the data that it was trained on.

The file is a zip archive with the config, tokenizers, results and mechanism of one system of a
workdir. It holds no data and no pickle. `contents.json` has a checksum of every file, so an archive
that was cut off or changed is refused.
"""

import contextlib
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import ega_jax
from ega_jax.errors import UserError
from ega_jax.training.files import check_files, checksums, read_json, replacing

FORMAT = 1  # Of the archive; changes when this version cannot read older ones.
CONTENTS = "contents.json"
_KEPT = ("config.json", "context.json", "results.json", "tokenizers")  # Of the workdir.
_KEPT_OF_SYSTEM = ("config.json", "mechanism")
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def pack(workdir: Path, out: Path, system: str) -> list[str]:
    """Writes the archive of one system of a workdir.

    Paths of data in configs are left empty: they are those of the machine.

    Args:
      workdir: a workdir in which the system's training is finished.
      out: the file to write; an existing one is replaced.
      system: the system's name.

    Returns:
      The files in the archive, as paths in the workdir.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in _files_of(workdir, system):
            copy = folder / file.relative_to(workdir)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            if file.name == "config.json":
                copy.write_text(json.dumps(_without_paths(read_json(file)), indent=2) + "\n")
        files = checksums(folder)
        head = {"format": FORMAT, "version": ega_jax.__version__, "system": system}
        (folder / CONTENTS).write_text(json.dumps(head | {"files": files}, indent=2) + "\n")
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as written, zipfile.ZipFile(written, "w") as zipped:
            for file in (CONTENTS, *files):
                zipped.write(folder / file, file, zipfile.ZIP_DEFLATED)
    return list(files)


def _files_of(workdir: Path, system: str) -> list[Path]:
    """The files of a workdir that belong into the archive."""
    own = workdir / "systems" / system
    kept = [workdir / name for name in _KEPT] + [own / name for name in _KEPT_OF_SYSTEM]
    below = [file for path in kept for file in (path, *sorted(path.rglob("*")))]
    return [file for file in below if file.is_file()]


def _without_paths(config: Any) -> Any:
    """A config whose data paths are empty."""
    data = config.get("data", {})
    data = data | {"path": ""} if "path" in data else data
    if "sequences" in (market := data.get("market", {})):
        data = data | {"market": market | {"sequences": ""}}
    return config | {"data": data} if data else config


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpacks an archive into a temporary workdir, which is deleted afterwards.

    Raises:
      UserError: the archive was cut off or changed, is in another format, or is none.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(path) as zipped:
                names = zipped.namelist()
                _check_names(path, names)
                zipped.extractall(folder)
            contents = json.loads((folder / CONTENTS).read_text()) if CONTENTS in names else None
        except UserError:
            raise
        except _BROKEN as error:
            raise UserError(
                f"{path} is no archive of experiments.pack, or was cut off or changed: {error}"
            ) from error
        check_files(folder, _listed(path, contents, names), str(path))
        yield folder


def _check_names(path: Path, names: list[str]) -> None:
    """Refuses files that would be written outside of the folder."""
    for name in names:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name:
            raise UserError(f"{path} names a file outside of itself: {name}")


def _listed(path: Path, contents: Any, names: list[str]) -> dict[str, str]:
    """The checksum of each file, which must be those that the archive holds."""
    if not isinstance(contents, dict) or not isinstance(contents.get("files"), dict):
        raise UserError(f"{path} is no archive of experiments.pack: it has no list of its files")
    if contents.get("format") != FORMAT:
        raise UserError(
            f"{path} is in format {contents.get('format')} and this version of ega_jax reads "
            f"format {FORMAT}: pack the workdir again"
        )
    files = contents["files"]
    for name in names:
        if name != CONTENTS and name not in files:
            raise UserError(f"{path} was changed: {name} is not in its list of files")
    for name in files:
        if name not in names:
            raise UserError(f"{path} is incomplete: {name} is missing")
    return files
