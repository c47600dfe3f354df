"""The rules for what can be shown: items of the sequences format, POIs and creatives of ad logs."""

import dataclasses
from pathlib import Path

import numpy as np

from ega_jax.data.checks import parts
from ega_jax.data.tables import DataError, Table, open_table

VECTOR = "a list of floats"
TAGS = "a text, or a list of texts"
ALIKE = 1e-6  # Embeddings that differ by no more than this share of their size are all alike.


@dataclasses.dataclass(frozen=True)
class ItemTable:
    """Size of a valid table of items."""

    num_rows: int
    width: int  # E.
    image_width: int = 0  # of `image_embedding`; 0 where it is absent.
    alike: tuple[str, ...] = ()  # columns of embeddings that are the same in every row.


def open_items(folder: Path) -> Table:
    """Finds `items.parquet` of the sequences format."""
    required = {"item_id": "an integer", "embedding": VECTOR}
    optional = {"image_embedding": VECTOR, "title": "a text", "categories": TAGS}
    return open_table(folder / "items.parquet", required, optional, "item_id")


def open_pois(folder: Path) -> Table:
    """Finds `pois.parquet` of an ad log."""
    required = {"poi_id": "an integer", "embedding": VECTOR}
    optional = {"title": "a text", "category": TAGS}
    return open_table(folder / "pois.parquet", required, optional, "poi_id")


def open_creatives(folder: Path) -> Table:
    """Finds `creatives.parquet` of an ad log."""
    required = {"creative_id": "an integer", "poi_id": "an integer", "embedding": VECTOR}
    return open_table(folder / "creatives.parquet", required, {}, "creative_id")


def check_items(table: Table) -> ItemTable:
    """Checks `items.parquet` of the sequences format."""
    return _check_rows(table, "item_id")


def check_pois(table: Table) -> ItemTable:
    """Checks `pois.parquet` of an ad log."""
    return _check_rows(table, "poi_id")


def check_creatives(table: Table, pois: ItemTable) -> tuple[ItemTable, np.ndarray]:
    """Checks `creatives.parquet` of an ad log; also returns `[R]` int64, each one's POI."""
    size = _check_rows(table, "creative_id")
    owners = []
    for part in parts(table, ["poi_id"]):
        owner = part.numbers("poi_id", np.int64)
        ok = (owner >= 0) & (owner < pois.num_rows)
        part.require(ok, "poi_id", f"POI ids must be in 0..{pois.num_rows - 1}", owner)
        owners.append(owner)
    return size, np.concatenate(owners)


def _check_rows(table: Table, id_column: str) -> ItemTable:
    if table.num_rows == 0:
        raise DataError(table.path, "the file has no rows")
    vectors = ["embedding", *(["image_embedding"] if table.has("image_embedding") else [])]
    lows: dict[str, list[np.ndarray]] = {column: [] for column in vectors}
    highs: dict[str, list[np.ndarray]] = {column: [] for column in vectors}
    for part in parts(table, [id_column, *vectors]):
        part.require_row_numbers(id_column)
        for column in vectors:
            width = len(lows[column][0]) if lows[column] else None
            matrix = part.embeddings(column, width)
            lows[column].append(matrix.min(axis=0))
            highs[column].append(matrix.max(axis=0))
    alike = [name for name in vectors if _are_alike(lows[name], highs[name])]
    return ItemTable(
        table.num_rows,
        *(len(lows[column][0]) for column in vectors),
        alike=tuple(alike) if table.num_rows > 1 else (),
    )


def _are_alike(lows: list[np.ndarray], highs: list[np.ndarray]) -> bool:
    """Whether embeddings hardly differ, by the smallest and the largest values `[E]` of parts."""
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    return bool((high - low).max() <= ALIKE * np.maximum(np.abs(low), np.abs(high)).max())


def require_variety(table: Table, size: ItemTable):
    """Refuses embeddings that are all alike: no code could tell two items apart.

    Raises:
      DataError: names the column.
    """
    for column in size.alike:
        raise DataError(table.path, "embeddings may not be the same in every row", column)
