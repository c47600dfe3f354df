"""The rules for what can be shown: items of the sequences format, POIs and creatives of ad logs."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ega_jax.data.checks import parts
from ega_jax.data.tables import DataError, open_table


@dataclasses.dataclass(frozen=True)
class ItemTable:
    """Size of a valid file of items."""

    num_rows: int
    width: int  # E.
    image_width: int = 0  # of `image_embedding`; 0 where it is absent.


def check_items(path: Path) -> ItemTable:
    """Checks `items.parquet` of the sequences format."""
    vector = "fixed-size list of floats"
    optional = {"image_embedding": vector, "title": "string"}
    table = open_table(path, {"item_id": "integer", "embedding": vector}, optional)
    return _check_rows(path, table, "item_id")


def check_pois(path: Path) -> ItemTable:
    """Checks `pois.parquet` of an ad log."""
    required = {"poi_id": "integer", "embedding": "fixed-size list of floats"}
    return _check_rows(path, open_table(path, required, {"title": "string"}), "poi_id")


def check_creatives(path: Path, pois: ItemTable) -> tuple[ItemTable, np.ndarray]:
    """Checks `creatives.parquet` of an ad log; also returns `[R]` int64, each one's POI."""
    required = {
        "creative_id": "integer",
        "poi_id": "integer",
        "embedding": "fixed-size list of floats",
    }
    table = open_table(path, required, {})
    size = _check_rows(path, table, "creative_id")
    owners = []
    for part in parts(path, table, ["poi_id"]):
        owner = part.numbers("poi_id", np.int64)
        ok = (owner >= 0) & (owner < pois.num_rows)
        part.require(ok, "poi_id", f"POI ids must be in 0..{pois.num_rows - 1}", owner)
        owners.append(owner)
    return size, np.concatenate(owners)


def _check_rows(path: Path, table: pq.ParquetFile, id_column: str) -> ItemTable:
    schema = table.schema_arrow
    vectors = [name for name in ("embedding", "image_embedding") if name in schema.names]
    if table.metadata.num_rows == 0:
        raise DataError(path, "the file has no rows")
    for part in parts(path, table, [id_column, *vectors]):
        part.require_row_numbers(id_column)
        for column in vectors:
            part.require_finite(column)
    return ItemTable(
        table.metadata.num_rows, *(schema.field(name).type.list_size for name in vectors)
    )
