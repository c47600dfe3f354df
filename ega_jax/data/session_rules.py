"""The rules for `sessions/` of an ad log: one row per request, in time order."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ega_jax.data.checks import Part, parts
from ega_jax.data.columns import is_list, to_numpy
from ega_jax.data.ragged import Ragged
from ega_jax.data.tables import DataError, Table, open_table
from ega_jax.types import LARGEST, is_amount

REQUIRED = {
    "session_id": "an integer",
    "user_id": "an integer",
    "timestamp": "an integer or a timestamp",
    "history_poi": "a list of integers",
    "history_creative": "a list of integers",
    "ad_poi": "a list of integers",
    "ad_bid": "a list of floats",
    "organic_poi": "a list of integers",
    "shown_poi": "a list of integers",
    "shown_creative": "a list of integers",
    "shown_is_ad": "a list of booleans",
    "click_poi": "a list of booleans",
    "click_image": "a list of booleans",
    "convert": "a list of booleans",
}
OPTIONAL = {"propensity": "a float, or a list of floats"}


@dataclasses.dataclass(frozen=True)
class SessionTotals:
    """Counts over all sessions."""

    rows: int = 0
    shown: int = 0
    ads: int = 0
    most_shown: int = 0
    most_candidates: int = 0
    longest_history: int = 0

    def add(self, history: Ragged, shown: Ragged, ads: Ragged, organic: Ragged) -> "SessionTotals":
        """Counts some more sessions."""
        candidates = ads.lengths + organic.lengths
        return SessionTotals(
            self.rows + shown.num_rows,
            self.shown + len(shown.values),
            self.ads + len(ads.values),
            max(self.most_shown, int(shown.lengths.max())),
            max(self.most_candidates, int(candidates.max())),
            max(self.longest_history, int(history.lengths.max())),
        )


def open_sessions(folder: Path) -> Table:
    """Finds the files below `sessions/`, in the order of their timestamps.

    Raises:
      DataError: there are none, or a column is missing or of another type.
    """
    return open_table(folder / "sessions", REQUIRED, OPTIONAL, order_by="timestamp")


def check_sessions(
    table: Table,
    num_pois: int,
    creative_poi: np.ndarray,
    num_slots: int | None,
    progress: Callable[[int, int], None],
) -> SessionTotals:
    """Checks every session.

    Args:
      table: the sessions.
      num_pois: P.
      creative_poi: `[R]` POI of each creative.
      num_slots: K, the most items that may be shown; none for no bound.
      progress: called with (rows checked, rows in all).

    Raises:
      DataError: at the first row that breaks a rule.
    """
    if not table.num_rows:
        raise DataError(table.path, "there are no sessions")
    columns = [*REQUIRED, *(name for name in OPTIONAL if table.has(name))]
    totals = SessionTotals()
    before = None
    for part in parts(table, columns):
        _check_time(part, before)
        history = _check_history(part, num_pois, creative_poi)
        shown, ads, organic = _check_slate(part, num_pois, creative_poi, num_slots)
        _check_feedback(part, shown)
        totals = totals.add(history, shown, ads, organic)
        before = part
        progress(totals.rows, table.num_rows)
    return totals


def require_examples(table: Table, totals: SessionTotals):
    """Refuses a log in which nothing was shown, or nothing was for sale.

    Raises:
      DataError: names the column and the rule.
    """
    if not totals.shown:
        raise DataError(table.path, "nothing was shown in any session", "shown_poi")
    if not totals.ads:
        raise DataError(table.path, "no session has an ad", "ad_poi")


def require_shown(table: Table, num_rows: int):
    """Refuses a log whose first `num_rows` sessions, the split "pretrain", show nothing.

    Reads no further than the first item shown.

    Raises:
      DataError: names the column and the rule.
    """
    for part in parts(table, ["shown_poi"]):
        inside = part.rows_before + part.rows < num_rows
        if part.lists("shown_poi", np.int64).lengths[inside].any():
            return
        if not inside.all():
            break
    rule = f"nothing was shown in the split 'pretrain', the first {num_rows} sessions"
    raise DataError(table.path, f"{rule}; see config.data.fractions", "shown_poi")


def _check_time(part: Part, before: Part | None):
    """Ids, and time order within these rows and after those `before`."""
    part.numbers("user_id", np.int64)
    session = part.numbers("session_id", np.int64)
    ok = (session >= 0) & (session < 2**31)
    part.require(ok, "session_id", "session ids must be in 0..2147483647", session)
    time = part.numbers("timestamp", np.int64)
    if before is not None:
        latest = before.numbers("timestamp", np.int64)[-1]
        rule = "rows must be in time order"
        if before.path != part.path:
            rule += f" over all files; the rows before, of {before.path}, end at {latest}"
        first = np.arange(len(time)) > 0
        part.require(first | (time >= latest), "timestamp", rule, time)
    ok = np.concatenate([[True], time[1:] >= time[:-1]])
    part.require(ok, "timestamp", "rows must be in time order", time)


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
) -> tuple[Ragged, Ragged, Ragged]:
    """The candidates and what was shown of them; returns what was shown, the ads, the others."""
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
    part.require_values(_is_first(shown, num_pois), shown, "shown_poi", "an item is shown once")
    is_ad = part.flags("shown_is_ad")
    part.require_equal_lengths(is_ad, "shown_is_ad", shown, "shown_poi")
    for kind, candidates, column in ((True, ads, "ad_poi"), (False, organic, "organic_poi")):
        ok = (is_ad.values != kind) | _among(shown, candidates, num_pois)
        part.require_values(ok, shown, "shown_poi", f"a shown item must be in its '{column}'")
    return shown, ads, organic


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
    flags = {name: part.flags(name) for name in ("click_poi", "click_image", "convert")}
    for column, lists in flags.items():
        part.require_equal_lengths(lists, column, shown, "shown_poi")
    click = flags["click_poi"].values | flags["click_image"].values
    convert = flags["convert"]
    part.require_values(~convert.values | click, convert, "convert", "a conversion needs a click")
    if "propensity" in part.table.column_names:
        _check_propensity(part, shown)


def _check_propensity(part: Part, shown: Ragged):
    """Propensities of a slate, or of each item shown; a null is one that is not known."""
    rule = "propensities must be in (0, 1]"
    column, known = "propensity", part.known("propensity")
    if is_list(part.table[column].type):
        lists = part.lists(column, np.float64, null_is_empty=True)
        same = ~known | (lists.lengths == shown.lengths)
        part.require(same, column, "a list must be as long as that of 'shown_poi'", lists.lengths)
        part.require_values(_is_propensity(lists.values), lists, column, rule)
    else:
        propensity = to_numpy(part.table[column], np.float64)
        part.require(~known | _is_propensity(propensity), column, rule, propensity)


def _is_propensity(values: np.ndarray) -> np.ndarray:
    return (values > 0) & (values <= 1 + 1e-6)
