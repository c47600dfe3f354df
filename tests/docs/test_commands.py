"""The page of commands names every command and every config."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text()
FIRST_CELLS = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def names(folder: Path, *internal: str) -> set[str]:
    """Modules of a folder that users name."""
    return {path.stem for path in folder.glob("*.py")} - {"__init__", *internal}


def test_every_command_is_listed():
    assert names(ROOT / "experiments") <= set(FIRST_CELLS)


def test_every_config_is_listed():
    listed = {cell.partition(".py")[0] for cell in FIRST_CELLS if ".py" in cell}
    assert listed == names(ROOT / "experiments" / "configs", "base", "saved")
