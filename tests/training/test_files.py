"""Files are replaced whole, and a folder is one process's at a time."""

import subprocess
import sys

import pytest

from ega_jax.training.files import locked, read_json, replacing


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
