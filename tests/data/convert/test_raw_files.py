import gzip
import json
import re

import pytest

from ega_jax.data.convert.raw_files import LineCounts, records
from ega_jax.data.tables import DataError

LINES = ['{"a": 1}', "", "{", '{"b": 2}', "[]", '{"a": 3}']


def number(line):
    return json.loads(line)["a"]


@pytest.mark.parametrize("name", ["lines.json", "lines.json.gz"])
def test_malformed_lines_are_counted_and_named(tmp_path, name):
    path = tmp_path / name
    data = "\n".join(LINES).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    counts = LineCounts()
    assert list(records(path, number, "utf-8", counts)) == [1, 3]
    assert (counts.read, counts.malformed) == (6, 3)
    assert [re.search(r":(\d+): ", example)[1] for example in counts.examples] == ["3", "4", "5"]
    assert f"{path}:4: no field 'a'" in str(counts)
    assert "6 lines read, 3 malformed and left out" in str(counts)


def test_only_the_first_few_are_quoted(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text("{\n" * 100)
    counts = LineCounts()
    assert list(records(path, number, "utf-8", counts)) == []
    assert counts.malformed == 100
    assert len(counts.examples) == 5
    assert str(counts).endswith("...")


def test_lines_to_skip_are_not_malformed(tmp_path):
    path = tmp_path / "lines.csv"
    path.write_text("header\nrow\n")
    counts = LineCounts()
    skip_header = records(path, lambda line: None if line == "header" else line, "utf-8", counts)
    assert list(skip_header) == ["row"]
    assert counts.malformed == 0


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"none.json: the file does not exist"):
        list(records(tmp_path / "none.json", number, "utf-8", LineCounts()))
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(DataError, match=r"cut.json.gz: cannot be read"):
        list(records(cut, number, "utf-8", LineCounts()))
