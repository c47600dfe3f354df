"""Open Bandit Dataset (Saito et al., arXiv 2008.07146): fashion recommendations with propensities.

A row is one impression in one of the three positions of a recommendation. Impressions of the same
page are not linked, so a row becomes a request with one slot. Its position, the user's features and
affinities (how often the user clicked each item before) become the context. The log has no bids:
every item of the campaign is for sale at a bid of 1.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ega_jax.data.convert.ad_log import (
    ROWS,
    AdLog,
    list_array,
    matrix_array,
    one_hot,
    session_table,
)
from ega_jax.data.convert.csv_columns import column_names, read_columns, require
from ega_jax.data.tables import DataError
from ega_jax.errors import UserError

POSITIONS = np.array([1, 2, 3])  # left, middle, right.
USER, AFFINITY = "user_feature_", "user-item_affinity_"  # Begin the names of columns.
NUMBER = "item_feature_0"  # The others are classes.
_LOG = {
    "timestamp": pa.timestamp("us", "UTC"),
    "item_id": pa.int64(),
    "position": pa.int64(),
    "click": pa.int64(),
    "propensity_score": pa.float64(),
}


def open_bandit(logs: Sequence[Path], items: Path | None) -> AdLog:
    """Reads one log of a campaign (`all.csv`, `men.csv`, `women.csv`) and its `item_context.csv`.

    The log is held in memory, at about 4 bytes a value.
    """
    if len(logs) != 1 or items is None:
        raise UserError(
            "open_bandit takes one log, --log=all.csv, and its items, --metadata=item_context.csv"
        )
    ids, pois = _read_items(items)
    log, features, affinities = _read_log(logs[0], ids)
    classes = {name: np.unique(log[name].to_numpy()) for name in features}
    num_classes = sum(map(len, classes.values()))
    return AdLog(
        pois=pois,
        sessions=_sessions(log, ids, classes, affinities),
        num_slots=1,
        remarks=(
            "no bids: every item is an ad with a bid of 1, so revenue counts clicks",
            f"context: {len(POSITIONS)} positions, {num_classes} classes of {len(features)} user "
            f"features, {len(affinities)} affinities",
            "propensity: of the item, given the position",
        ),
    )


def _read_items(path: Path) -> tuple[np.ndarray, pa.Table]:
    """Ids `[P]`, rising, and POIs with their number standardised and one value per class."""
    features = [name for name in column_names(path) if name.startswith("item_feature_")]
    classes = [name for name in features if name != NUMBER]
    types = {"item_id": pa.int64(), NUMBER: pa.float64()} | dict.fromkeys(classes, pa.string())
    table = read_columns(path, types).sort_by("item_id")
    ids = table["item_id"].to_numpy()
    if len(np.unique(ids)) < len(ids):
        raise DataError(path, "an item comes twice", "item_id")
    values = table[NUMBER].to_numpy()
    scaled = (values - values.mean()) / (values.std() or 1.0)
    each = [table[name].to_numpy() for name in classes]
    embedding = np.hstack([scaled[:, None], *(one_hot(x, np.unique(x)) for x in each)])
    pois = {
        "poi_id": np.arange(len(ids), dtype=np.int32),
        "source_id": ids,
        "title": [f"item {number}" for number in ids],
        "embedding": matrix_array(embedding),
    }
    return ids, pa.table(pois)


def _read_log(path: Path, ids: np.ndarray) -> tuple[pa.Table, list[str], list[str]]:
    """The impressions in time order, and the names of user features and of affinities."""
    names = column_names(path)
    features = [name for name in names if name.startswith(USER)]
    affinities = [name for name in names if name.startswith(AFFINITY)]
    types = dict.fromkeys(features, pa.string()) | dict.fromkeys(affinities, pa.float32())
    log = read_columns(path, _LOG | types)
    item, position, click, propensity = (log[name].to_numpy() for name in list(_LOG)[1:])
    require(np.isin(item, ids), path, "item_id", "the item is not in the file of items", item)
    rule = f"a position must be in {POSITIONS[0]}..{POSITIONS[-1]}"
    require(np.isin(position, POSITIONS), path, "position", rule, position)
    require((click == 0) | (click == 1), path, "click", "a click must be 0 or 1", click)
    ok = (propensity > 0) & (propensity <= 1)
    require(ok, path, "propensity_score", "propensities must be in (0, 1]", propensity)
    time = log["timestamp"].cast(pa.int64()).to_numpy()
    if (np.diff(time) < 0).any():
        log = log.take(np.argsort(time, kind="stable"))
    return log, features, affinities


def _sessions(
    log: pa.Table, ids: np.ndarray, classes: dict[str, np.ndarray], affinities: list[str]
) -> Iterator[pa.Table]:
    for start in range(0, log.num_rows, ROWS):
        part = log.slice(start, ROWS)
        rows, every = len(part), np.arange(len(ids), dtype=np.int32)
        for_sale = list_array(np.tile(every, rows), np.full(rows, len(ids)))
        bids = list_array(np.ones(rows * len(ids), np.float32), np.full(rows, len(ids)))
        shown = np.searchsorted(ids, part["item_id"].to_numpy()).astype(np.int32)
        context = [
            one_hot(part["position"].to_numpy(), POSITIONS),
            *(one_hot(part[name].to_numpy(), found) for name, found in classes.items()),
            *(part[name].to_numpy()[:, None] for name in affinities),
        ]
        table = session_table(
            part["timestamp"],
            (for_sale, bids),
            list_array(shown, np.ones(rows, np.int64)),
            clicked=part["click"].to_numpy() == 1,
            converted=np.zeros(rows, bool),
            context=np.hstack(context),
        )
        yield table.append_column("propensity", part["propensity_score"])
