"""The table of equations: complete, and every function in it exists."""

import functools
import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "method.md").read_text()
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("|")]
NAMES = sorted(set(re.findall(r"`(ega_jax(?:\.\w+)+)`", PAGE)))
EQUATIONS = [*range(3, 7), *range(15, 36)]


def resolved(name: str) -> object:
    """The object of a dotted name: the longest part that is a module, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[length:], module)
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_exists(name):
    resolved(name)


@pytest.mark.parametrize("number", EQUATIONS)
def test_an_equation_has_its_row_and_its_function(number):
    (row,) = [row for row in ROWS if row[0].strip() == f"({number})"]
    assert re.search(r"`ega_jax(\.\w+)+`", row[2])


@pytest.mark.parametrize("rule", ["First price", "GSP", "VCG", "Clarke", "Myerson"])
def test_a_closed_form_has_its_row(rule):
    assert any(row[0].strip() == rule and "ega_jax.payment.rules" in row[2] for row in ROWS)


def test_the_way_of_a_request_takes_at_most_eight_files():
    files = [row[2].strip(" `") for row in ROWS if row[2].strip().endswith(".py`")]
    root = Path(__file__).parents[2] / "ega_jax"
    assert 0 < len(files) <= 8
    assert [name for name in files if not (root / name).is_file()] == []
