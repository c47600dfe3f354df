import bz2
import codecs
import gzip
import lzma
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data.convert.raw_files import RawFile
from ega_jax.data.tables import DataError

TEXT = "1::Le Fabuleux destin d'Amélie Poulain (2001)::Comedy\n2::Heat (1995)::Action\n"


def read(path):
    with RawFile.inspect(path).open() as file:
        return file.read()


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (TEXT.encode(), "utf-8"),
        (codecs.BOM_UTF8 + TEXT.encode(), "utf-8"),
        (TEXT.encode("latin-1"), "latin-1"),
        (TEXT.encode("utf-16"), "utf-16"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_encodings_and_compressions_are_told_by_the_bytes(tmp_path, data, encoding, compress):
    (tmp_path / "movies.dat").write_bytes(compress(data))
    assert read(tmp_path / "movies.dat") == TEXT
    assert str(RawFile.inspect(tmp_path / "movies.dat")).endswith(f"movies.dat ({encoding})")


def test_a_late_character_decides(tmp_path):
    """The first one stands far behind what any buffer holds."""
    start = "x" * 79 + "\n"
    for encoding in ("utf-8", "latin-1"):
        data = (start * 20000 + TEXT).encode(encoding)
        (tmp_path / "late.dat").write_bytes(data)
        assert read(tmp_path / "late.dat").endswith(TEXT)


def test_a_few_faults_do_not_spoil_a_utf_8_file(tmp_path):
    good, bad = "Amélie\n", "Café\n"
    (tmp_path / "mixed").write_bytes(good.encode() * 3 + bad.encode("latin-1"))
    assert read(tmp_path / "mixed") == good * 3 + bad
    assert "mixed (utf-8, but for 1 lines of latin-1)" in str(RawFile.inspect(tmp_path / "mixed"))


def test_head_skips_blank_lines(tmp_path):
    (tmp_path / "lines").write_bytes(b"\r\na\r\n  \nb\nc")
    assert RawFile.inspect(tmp_path / "lines").head(2) == ["a", "b"]


def write_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ratings.dat", "1::2::3::4")


def write_tar(path):
    path.with_suffix(".txt").write_text("text")
    with tarfile.open(path, "w:gz") as file:
        file.add(path.with_suffix(".txt"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "the file does not exist"),
        (lambda path: path.mkdir(), "this is a folder; expected a file"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(b"\n \n"), "the file is empty"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "the file is empty"),
        (write_zip, "a zip archive; unpack it"),
        (write_tar, "a tar archive; unpack it"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "a Parquet file"),
        (lambda path: np.asarray([1, 2]).tofile(path), "not text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, write, message):
    write(tmp_path / "file")
    with pytest.raises(DataError, match=rf"file: .*{message}"):
        RawFile.inspect(tmp_path / "file")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_damaged_files_are_refused(tmp_path, compress):
    data = compress(np.random.default_rng(0).bytes(20000).hex().encode())
    middle = len(data) // 2
    damaged = data[:middle] + bytes(64) + data[middle + 64 :]
    for name, part in {"cut": data[:-20], "half": data[:middle], "damaged": damaged}.items():
        (tmp_path / name).write_bytes(part)
        # The decoder of .bz2 gives a damaged block before it finds the fault.
        with pytest.raises(DataError, match=rf"{name}: (cannot be read to its end|.* not text)"):
            RawFile.inspect(tmp_path / name)
