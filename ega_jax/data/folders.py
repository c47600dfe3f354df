"""Which format a folder is in, and what to name instead of a folder that is in none."""

from collections.abc import Iterator
from pathlib import Path

from ega_jax.data.tables import DataError

EXPECTED = (
    "expected items.parquet and sequences.parquet, or pois.parquet, creatives.parquet and sessions/"
)


def detect_format(folder: Path | str) -> str:
    """Tells "sequences" from "ad_log" by the files present.

    Raises:
      DataError: the folder does not exist, or is neither; names a folder nearby that is one.
    """
    folder = Path(folder)
    if found := _format_of(folder):
        return found
    if not folder.exists():
        where = "" if folder.is_absolute() else f" (looked for {folder.absolute()})"
        raise DataError(folder, f"the folder does not exist{where}")
    nearby = [*_parents(folder), *_children(folder)]
    hint = f"; did you mean {' or '.join(map(str, nearby))}?" if nearby else ""
    if not folder.is_dir():
        raise DataError(folder, f"a file, not the folder of a dataset: {EXPECTED}{hint}")
    names = sorted(path.name for path in folder.iterdir())
    held = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise DataError(folder, f"not a dataset: {EXPECTED}; it holds {held or 'nothing'}{hint}")


def _format_of(folder: Path) -> str | None:
    if (folder / "sequences.parquet").exists() or (folder / "items.parquet").exists():
        return "sequences"
    if (folder / "sessions").is_dir() or (folder / "pois.parquet").exists():
        return "ad_log"
    return None


def _parents(path: Path) -> list[Path]:
    """The dataset that a path leads into, if it does."""
    return [parent for parent in path.absolute().parents if _format_of(parent)][:1]


def _children(path: Path) -> Iterator[Path]:
    """The datasets one level down."""
    below = sorted(path.iterdir()) if path.is_dir() else []
    return (child for child in below if child.is_dir() and _format_of(child))
