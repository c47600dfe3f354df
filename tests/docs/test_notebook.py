"""The notebook as it is committed: run from top to bottom, with addresses of this repository.

`.ci/run` executes it.
"""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OPENED = re.compile(r"https://colab\.research\.google\.com/github/([^)\s]*)")


def cells_of(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text())["cells"]


def address() -> str:
    """The repository's own address."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_with_its_outputs(notebook):
    cells = [cell for cell in cells_of(notebook) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert "error" not in {output["output_type"] for output in outputs}
    assert "Traceback" not in notebook.read_text()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_its_links_lead_to_this_repository(notebook):
    text = "".join(line for cell in cells_of(notebook) for line in cell["source"])
    place = address().removeprefix("https://github.com/")
    here = f"{place}/blob/main/{notebook.relative_to(ROOT)}"
    assert OPENED.findall(text) == [here]
    assert OPENED.findall((ROOT / "README.md").read_text()) == [here]
    assert f'REPOSITORY = "{address()}"' in text
    links = re.findall(r"https://github\.com/([\w-]+/[\w-]+)(?:/blob/main/([^)]*))?", text)
    assert {repository for repository, _ in links} == {place}
    assert all((ROOT / path).exists() for _, path in links if path)


def test_there_is_a_notebook():
    assert [path.name for path in NOTEBOOKS] == ["quickstart.ipynb"]
