"""The reference has every folder and every module of the package, and the site every page."""

import re
from pathlib import Path

import ega_jax

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = Path(ega_jax.__file__).parent


def test_every_part_of_the_package_is_documented():
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"^::: ega_jax\.(\w+)$", pages, re.MULTILINE))
    parts = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert documented == parts


def test_every_page_is_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = set(re.findall(r"([\w/-]+\.md)$", navigation, re.MULTILINE))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
