"""Text files as users download them: compressed or not, UTF-8 or latin-1, with or without a mark.

The kind of a file is read from its first bytes, whatever its name.
"""

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from ega_jax.data.tables import DataError

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_REFUSED = {
    b"PK\x03\x04": "a zip archive; unpack it and name a file in it",
    b"PAR1": "a Parquet file; expected text",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; expected plain text or .gz",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it and name a file in it",
}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError)
_HEAD = 4096  # Bytes that are looked at to tell text from anything else.


def _latin_1(error: UnicodeError) -> tuple[str, int]:
    """Reads bytes that are not UTF-8 as latin-1; a handler of decoding errors."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("ega_jax.latin_1", _latin_1)


@dataclasses.dataclass(frozen=True)
class RawFile:
    """A text file and its encoding.

    A file is UTF-8 unless it does not decode as UTF-8: then it is latin-1. If most of its lines
    with other than ASCII characters do decode, it is UTF-8 with a few faults, and the bytes at
    fault alone are read as latin-1.
    """

    path: Path
    encoding: str  # of Python's names: "utf-8-sig", "latin-1" or "utf-16".
    faults: int = 0  # lines of a UTF-8 file that do not decode.

    @classmethod
    def inspect(cls, path: Path) -> "RawFile":
        """Reads a file once to find out its encoding, and whether it can be read to its end.

        Raises:
          DataError: the file does not exist, is empty, damaged, or is not text.
        """
        if not path.is_file():
            found = "this is a folder; expected a file" if path.is_dir() else "does not exist"
            raise DataError(path, found if path.is_dir() else f"the file {found}")
        with _reading(path), _open_bytes(path) as file:
            head = file.read(_HEAD)
            if head.startswith(_UTF_16):
                return cls(path, "utf-16")
            _check_text(path, head)
            file.seek(0)
            good, bad = _count_lines(file)
        return cls(path, "latin-1") if bad > good else cls(path, "utf-8-sig", bad)

    @contextlib.contextmanager
    def open(self) -> Iterator[TextIO]:
        """Opens the text, its line ends as they are.

        Raises:
          DataError: the file cannot be read.
        """
        with _reading(self.path), _open_bytes(self.path) as file:
            yield io.TextIOWrapper(file, self.encoding, errors="ega_jax.latin_1", newline="")

    def head(self, lines: int) -> list[str]:
        """The first lines that are not blank, without their line ends."""
        with self.open() as file:
            filled = (line.rstrip("\r\n") for line in file if line.strip())
            return list(itertools.islice(filled, lines))

    def __str__(self) -> str:
        name = self.encoding.removesuffix("-sig")
        faults = f", but for {self.faults} lines of latin-1" if self.faults else ""
        return f"{self.path} ({name}{faults})"


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise DataError(path, f"cannot be read to its end ({error})") from error


def _open_bytes(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        start = file.read(max(map(len, _OPENERS)))
    for mark, opener in _OPENERS.items():
        if start.startswith(mark):
            return opener(path, "rb")  # pyrefly: ignore
    return path.open("rb")


def _check_text(path: Path, head: bytes) -> None:
    if not head.strip():
        raise DataError(path, "the file is empty")
    for mark, kind in _REFUSED.items():
        if head.startswith(mark):
            raise DataError(path, f"the file is {kind}")
    if head[257:262] == b"ustar":
        raise DataError(path, "the file is a tar archive; unpack it and name a file in it")
    if b"\0" in head:
        raise DataError(path, "the file is not text (it holds zero bytes)")


def _count_lines(file: BinaryIO) -> tuple[int, int]:
    """Counts the lines with other than ASCII characters that are UTF-8, and that are not."""
    good = bad = 0
    for line in file:
        if not line.isascii():
            try:
                line.decode()
                good += 1
            except UnicodeDecodeError:
                bad += 1
    return good, bad
