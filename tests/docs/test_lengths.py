"""README and notes stay short, and no line of the documentation is too long to read."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_LINE = 120
PAGES = [ROOT / "README.md", ROOT / "BUILD_NOTES.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(("name", "most"), [("README.md", 200), ("BUILD_NOTES.md", 150)])
def test_a_page_has_at_most_so_many_lines(name, most):
    assert len((ROOT / name).read_text().splitlines()) <= most


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_is_too_long(page):
    lines = enumerate(page.read_text().splitlines(), start=1)
    assert [number for number, line in lines if len(line) > LONGEST_LINE] == []
