"""The reference shows the comments at fields as their descriptions."""

import importlib
from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe")
DOCS = Path(__file__).parents[2] / "docs"
MODULE = '''
class Sizes:
    """Sizes of a model."""

    width: int = 64  # D, of the states.
    # A comment above,
    # on two lines.
    probes: tuple[float, ...] = (0.0, 1.0)
    plain: int = 3
    _hidden: int = 1  # Not public.


class Larger(Sizes):
    """Inherits fields."""

    depth: int = 2  # Layers.


class Documented:
    """Has its own section.

    Attributes:
      width: as said here.
    """

    width: int  # Not taken.
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    field_comments = importlib.import_module("field_comments")
    (tmp_path / "sizes.py").write_text(MODULE)
    extensions = griffe.load_extensions(field_comments.FieldComments())
    return griffe.load("sizes", search_paths=[tmp_path], extensions=extensions)


def test_comments_and_defaults_are_described(module):
    section = module["Sizes"].docstring.value.partition("Attributes:\n")[2]
    assert section.splitlines() == [
        "  width: D, of the states. Default: `64`.",
        "  probes: A comment above, on two lines. Default: `(0.0, 1.0)`.",
    ]


def test_inherited_fields_are_left_to_their_class(module):
    section = module["Larger"].docstring.value.partition("Attributes:\n")[2]
    assert section.splitlines() == ["  depth: Layers. Default: `2`."]


def test_a_section_of_its_own_stays(module):
    assert "Not taken" not in module["Documented"].docstring.value
