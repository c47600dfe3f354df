"""Files and folders are replaced whole, and a folder is one process's at a time."""

import subprocess
import sys

import pytest

from ega_jax.errors import UserError
from ega_jax.training.files import (
    check_files,
    checksums,
    locked,
    read_json,
    replacing,
    replacing_folder,
)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    with replacing(path) as written:
        written.write_text("first")
        assert written.suffix == ".csv"
        assert not path.exists()

    def fail():
        with replacing(path) as written:
            written.write_text("second")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "artefact"
    with replacing_folder(path, "mark") as written:
        (written / "mark").write_text("first")
        assert not path.exists()

    def fail():
        with replacing_folder(path, "mark") as written:
            (written / "mark").write_text("second")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (path / "mark").read_text() == "first"
    with replacing_folder(path, "mark") as written:
        (written / "mark").write_text("third")
    assert (path / "mark").read_text() == "third"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_or_file_of_another_kind_is_not_replaced(tmp_path):
    (tmp_path / "kept").write_text("x")
    for path in (tmp_path, tmp_path / "kept"):
        with (
            pytest.raises(UserError, match="exists and has no mark: choose another folder"),
            replacing_folder(path, "mark"),
        ):
            pytest.fail("nothing is written")
    empty = tmp_path / "empty"
    empty.mkdir()
    with replacing_folder(empty, "mark") as written:
        (written / "mark").write_text("x")
    assert (empty / "mark").exists()


def test_files_are_checked_by_their_sums(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("abc")
    known = checksums(tmp_path)
    assert known == {"a/b": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    check_files(tmp_path, known, "it")
    (tmp_path / "a" / "b").write_text("abd")
    with pytest.raises(UserError, match="it is damaged: a/b is not as it was written"):
        check_files(tmp_path, known, "it")
    (tmp_path / "a" / "b").unlink()
    with pytest.raises(UserError, match="it is incomplete: a/b is missing"):
        check_files(tmp_path, known, "it")


ASK = """
import sys, pathlib
from ega_jax.training.files import locked
with locked(pathlib.Path(sys.argv[1]), wait=False) as is_ours:
    print(is_ours)
"""


def test_a_folder_is_one_process_s(tmp_path):
    ask = lambda: subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.strip()
    with locked(tmp_path) as is_ours:
        assert is_ours
        assert ask() == "False"
    assert ask() == "True"
    assert not list(tmp_path.iterdir())


def test_what_is_no_json_is_named(tmp_path):
    (tmp_path / "results.json").write_text("")
    with pytest.raises(ValueError, match=r"results\.json is no JSON"):
        read_json(tmp_path / "results.json")
