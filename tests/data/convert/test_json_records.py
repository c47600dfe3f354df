import io
import json

import pytest

from ega_jax.data.convert import json_records
from ega_jax.data.convert.json_records import BrokenJSONError, Malformed, is_json, json_rows

OBJECTS = [{"a": 1, "b": "x, [y]\n{z}"}, {"a": 2, "b": "é\U0001f600"}, {"a": [{"c": 3}]}]


def rows(text):
    head = [line for line in text.splitlines() if line.strip()]
    assert is_json(head)
    return list(json_rows(io.StringIO(text, newline=""), head))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_lines(end):
    text = end.join(json.dumps(record) for record in OBJECTS)
    step = end.count("\n")
    assert rows(text) == [(1 + step * place, record) for place, record in enumerate(OBJECTS)]


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_arrays(monkeypatch, chunk, indent):
    monkeypatch.setattr(json_records, "_CHUNK", chunk)
    got = rows(json.dumps(OBJECTS, indent=indent))
    assert [record for _, record in got] == OBJECTS
    assert [line for line, _ in got] == ([2, 6, 10] if indent else [1, 1, 1])


def test_objects_over_several_lines():
    text = "\n".join(json.dumps(record, indent=1) for record in OBJECTS)
    assert rows(text) == list(zip([1, 5, 9], OBJECTS, strict=True))


def test_python_literals():
    assert rows("{'a': \"it's\", 'b': None}\n") == [(1, {"a": "it's", "b": None})]


@pytest.mark.parametrize(
    "line", ["{", "{'a': __import__('os')}", "{[]: 1}", "{" * 300, '{"a": 1} 2']
)
def test_malformed_lines(line):
    (_, first), (number, second) = rows(f'{{"a": 1}}\n{line}')
    assert (first, number) == ({"a": 1}, 2)
    assert isinstance(second, Malformed)
    assert "neither JSON nor a Python literal" in second.reason


@pytest.mark.parametrize("line", ["oops", "[]", "{", "[1, 2]", '{"a": '])
def test_the_first_line_may_be_malformed(line):
    (number, first), second = rows(f'{line}\n{{"a": 1}}\n')
    assert (number, second) == (1, (2, {"a": 1}))
    assert isinstance(first, Malformed)


def test_what_is_no_object():
    assert rows('{"a": 1}\n[2]\n3')[1:] == [(n, Malformed("not an object")) for n in (2, 3)]
    assert rows('[{"a": 1}, 2]')[1:] == [(1, Malformed("not an object"))]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"a": 1},\n{"a" 2},\n{"a": 3}\n]', 3),
        ('[{"a": 1},\n{"a": 2', 2),
        ("[{'a': 1}]", 1),
        ("[" + '{"a":' * 5000, 1),
    ],
)
def test_broken_arrays_are_named_by_line(text, line):
    with pytest.raises(BrokenJSONError, match=f"line {line}: "):
        rows(text)


def test_a_fault_in_a_long_array_is_found_at_once(monkeypatch):
    """The rest of the file is not read for it."""
    monkeypatch.setattr(json_records, "_CHUNK", 64)
    file = io.StringIO("[{]" + " " * 10000)
    with pytest.raises(BrokenJSONError):
        list(json_rows(file, ["[{]"]))
    assert file.tell() < 500
