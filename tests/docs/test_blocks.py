"""The Python blocks of README.md and of the pages in docs/, run in order, page by page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """The line on which each Python block of a page starts, and its code."""
    text = page.read_text()
    blocks = BLOCK.finditer(text)
    return [(text.count("\n", 0, match.start()) + 1, match[1]) for match in blocks]


def run_blocks(blocks: list[tuple[int, str]], name: str) -> None:
    """Runs the blocks of one page in one namespace; tracebacks show the page's own lines."""
    namespace = {"__name__": "docs"}
    for line, code in blocks:
        exec(compile("\n" * line + code, name, "exec"), namespace)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if python_blocks(page)],
)
def test_python_blocks_run(page, finished, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "market-tiny").symlink_to(finished[1])
    monkeypatch.chdir(tmp_path)
    run_blocks(python_blocks(page), str(page))


def test_a_block_that_fails_names_page_and_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as error:
        run_blocks(python_blocks(page), str(page))
    last = error.traceback[-1]
    assert (Path(last.path), last.lineno + 1) == (page, 8)


def test_readme_shows_serving():
    assert any("Mechanism.restore" in code for _, code in python_blocks(ROOT / "README.md"))
