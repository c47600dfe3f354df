"""The rules for `sessions/*.parquet` of an ad log: one row per request, in time order."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ega_jax.data.checks import Part, parts
from ega_jax.data.ragged import Ragged
from ega_jax.data.tables import DataError, open_table
from ega_jax.types import LARGEST, is_amount

REQUIRED = {
    "session_id": "integer",
    "user_id": "integer",
    "timestamp": "integer",
    "history_poi": "list of integers",
    "history_creative": "list of integers",
    "ad_poi": "list of integers",
    "ad_bid": "list of floats",
    "organic_poi": "list of integers",
    "shown_poi": "list of integers",
    "shown_creative": "list of integers",
    "shown_is_ad": "list of booleans",
    "click_poi": "list of booleans",
    "click_image": "list of booleans",
    "convert": "list of booleans",
}
OPTIONAL = {"propensity": "float"}


@dataclasses.dataclass(frozen=True)
class SessionTotals:
    """Counts over all sessions."""

    rows: int = 0
    shown: int = 0
    most_shown: int = 0
    most_candidates: int = 0
    longest_history: int = 0

    def add(self, history: Ragged, shown: Ragged, candidates: np.ndarray) -> "SessionTotals":
        """Counts some more sessions; `candidates` `[rows]` is their number."""
        return SessionTotals(
            self.rows + shown.num_rows,
            self.shown + len(shown.values),
            max(self.most_shown, int(shown.lengths.max())),
            max(self.most_candidates, int(candidates.max())),
            max(self.longest_history, int(history.lengths.max())),
        )


def session_files(folder: Path) -> list[Path]:
    """Files of sessions in time order, which is that of their names; hidden ones are left out.

    Raises:
      DataError: there are none.
    """
    paths = sorted(path for path in folder.glob("*.parquet") if path.name[0] not in "._")
    if not paths:
        raise DataError(folder, "the folder does not exist or holds no *.parquet file")
    return paths


def check_sessions(
    folder: Path,
    num_pois: int,
    creative_poi: np.ndarray,
    num_slots: int | None,
    progress: Callable[[int, int], None],
) -> SessionTotals:
    """Checks every session.

    Args:
      folder: `sessions/`.
      num_pois: P.
      creative_poi: `[R]` POI of each creative.
      num_slots: K, the most items that may be shown; none for no bound.
      progress: called with (rows checked, rows in all).

    Raises:
      DataError: at the first row that breaks a rule.
    """
    paths = session_files(folder)
    total = sum(open_table(path, REQUIRED, OPTIONAL).metadata.num_rows for path in paths)
    if not total:
        raise DataError(folder, "there are no sessions")
    totals = SessionTotals()
    latest = np.iinfo(np.int64).min
    for path in paths:
        for part in _session_parts(path):
            latest = _check_time(part, latest)
            history = _check_history(part, num_pois, creative_poi)
            shown, candidates = _check_slate(part, num_pois, creative_poi, num_slots)
            _check_feedback(part, shown)
            totals = totals.add(history, shown, candidates)
            progress(totals.rows, total)
    return totals


def _session_parts(path: Path):
    table = pq.ParquetFile(path)
    names = [name for name in (*REQUIRED, *OPTIONAL) if name in table.schema_arrow.names]
    return parts(path, table, names)


def _check_time(part: Part, latest: int) -> int:
    """Ids and time order; `latest` is the time of the row before. Returns that of the last row."""
    part.numbers("user_id", np.int64)
    session = part.numbers("session_id", np.int64)
    ok = (session >= 0) & (session < 2**31)
    part.require(ok, "session_id", "session ids must be in 0..2147483647", session)
    time = part.numbers("timestamp", np.int64)
    ok = time >= np.concatenate([[latest], time[:-1]])
    part.require(ok, "timestamp", "rows must be in time order", time)
    return int(time[-1])


def _check_history(part: Part, num_pois: int, creative_poi: np.ndarray) -> Ragged:
    history = part.ids("history_poi", num_pois, "POI")
    _check_creatives(part, "history_creative", "history_poi", history, creative_poi)
    return history


def _check_creatives(
    part: Part, column: str, poi_column: str, pois: Ragged, creative_poi: np.ndarray
):
    """Each creative must exist and belong to the POI at its side."""
    creatives = part.ids(column, len(creative_poi), "creative")
    part.require_equal_lengths(creatives, column, pois, poi_column)
    ok = creative_poi[creatives.values] == pois.values
    part.require_values(ok, creatives, column, f"a creative must belong to its '{poi_column}'")


def _check_slate(
    part: Part, num_pois: int, creative_poi: np.ndarray, num_slots: int | None
) -> tuple[Ragged, np.ndarray]:
    """The candidates and what was shown of them; returns it, and `[rows]` numbers of candidates."""
    ads, organic = (part.ids(name, num_pois, "POI") for name in ("ad_poi", "organic_poi"))
    for candidates, column in ((ads, "ad_poi"), (organic, "organic_poi")):
        ok = _is_first(candidates, num_pois)
        part.require_values(ok, candidates, column, "a candidate must come once")
    bids = part.lists("ad_bid", np.float64)
    part.require_equal_lengths(bids, "ad_bid", ads, "ad_poi")
    part.require_values(
        is_amount(bids.values), bids, "ad_bid", f"bids must be from 0 to {LARGEST:g}"
    )

    shown = part.ids("shown_poi", num_pois, "POI")
    _check_creatives(part, "shown_creative", "shown_poi", shown, creative_poi)
    if num_slots is not None:
        rule = f"at most {num_slots} items fit the slots"
        part.require(shown.lengths <= num_slots, "shown_poi", rule, shown.lengths)
    is_ad = part.lists("shown_is_ad", bool)
    part.require_equal_lengths(is_ad, "shown_is_ad", shown, "shown_poi")
    for kind, candidates, column in ((True, ads, "ad_poi"), (False, organic, "organic_poi")):
        ok = (is_ad.values != kind) | _among(shown, candidates, num_pois)
        part.require_values(ok, shown, "shown_poi", f"a shown item must be in its '{column}'")
    return shown, ads.lengths + organic.lengths


def _keys(lists: Ragged, bound: int) -> np.ndarray:
    """`[V]` numbers that are the same for values in [0, bound) that are, in the same row."""
    return lists.row_of_value() * bound + lists.values


def _among(lists: Ragged, others: Ragged, bound: int) -> np.ndarray:
    """`[V]` whether each value of `lists`, in [0, bound), is in the same row of `others`."""
    keys, other_keys = _keys(lists, bound), _keys(others, bound)
    other_keys = np.append(np.sort(other_keys), -1)
    return other_keys[np.searchsorted(other_keys[:-1], keys)] == keys


def _is_first(lists: Ragged, bound: int) -> np.ndarray:
    """`[V]` whether no value before it in its row equals a value of `lists`, in [0, bound)."""
    keys = _keys(lists, bound)
    is_first = np.zeros(keys.shape, bool)
    is_first[np.unique(keys, return_index=True)[1]] = True
    return is_first


def _check_feedback(part: Part, shown: Ragged):
    for column in ("click_poi", "click_image", "convert"):
        part.require_equal_lengths(part.lists(column, bool), column, shown, "shown_poi")
    click = part.lists("click_poi", bool).values | part.lists("click_image", bool).values
    convert = part.lists("convert", bool)
    part.require_values(~convert.values | click, convert, "convert", "a conversion needs a click")
    if "propensity" in part.table.column_names:
        propensity = part.numbers("propensity", np.float64)
        ok = (propensity > 0) & (propensity <= 1 + 1e-6)
        part.require(ok, "propensity", "propensities must be in (0, 1]", propensity)
