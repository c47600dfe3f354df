"""The rules for `sessions/` of an ad log: one row per request, in time order.

A session holds its own ads, the columns `book_rules.ADS`, or names a book.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ega_jax.data import slate_rules
from ega_jax.data.book_rules import ADS, BOOK_ID, BookIndex
from ega_jax.data.checks import Part, parts
from ega_jax.data.ragged import Ragged
from ega_jax.data.tables import DataError, Table, column_names, open_table

REQUIRED = {
    "session_id": "an integer",
    "user_id": "an integer",
    "timestamp": "an integer or a timestamp",
    "history_poi": "a list of integers",
    "organic_poi": "a list of integers",
    "shown_poi": "a list of integers",
    "shown_is_ad": "a list of booleans",
    "click_poi": "a list of booleans",
    "click_image": "a list of booleans",
    "convert": "a list of booleans",
}
CREATIVES = {  # Of a log with `creatives.parquet`.
    "history_creative": "a list of integers",
    "shown_creative": "a list of integers",
}
OPTIONAL = {
    "context": "a list of floats",
    "propensity": "a float, or a list of floats",
    "explored": "a boolean",
}
OWN_ADS_OR_BOOKS = (
    "all sessions of a log hold their own ads or all name books, not both: leave out 'ad_poi' and "
    "'ad_bid', or 'book_id' and the folder books/"
)


@dataclasses.dataclass(frozen=True)
class SessionTotals:
    """Counts over all sessions."""

    rows: int = 0
    shown: int = 0
    most_shown: int = 0
    most_ads: int = 0  # that a session holds itself; 0 if it names a book.
    most_organic: int = 0
    most_candidates: int = 0  # ads and organic items of a session.
    longest_history: int = 0
    context_width: int = 0  # 0 without a context.

    def add(
        self,
        history: Ragged,
        shown: Ragged,
        num_ads: np.ndarray,
        organic: Ragged,
        context_width: int,
    ) -> "SessionTotals":
        """Counts some more sessions; `num_ads` `[rows]` are the ads that each holds itself."""
        return SessionTotals(
            self.rows + shown.num_rows,
            self.shown + len(shown.values),
            max(self.most_shown, int(shown.lengths.max())),
            max(self.most_ads, int(num_ads.max())),
            max(self.most_organic, int(organic.lengths.max())),
            max(self.most_candidates, int((num_ads + organic.lengths).max())),
            max(self.longest_history, int(history.lengths.max())),
            context_width,
        )


def names_books(folder: Path) -> bool:
    """Whether the sessions of a log name books, instead of each holding ads of its own."""
    columns = column_names(folder / "sessions")
    return (folder / "books").exists() or ("book_id" in columns and not columns & ADS.keys())


def has_creatives(folder: Path) -> bool:
    """Whether the POIs of a log have creatives; else each POI stands for its only one."""
    return (folder / "creatives.parquet").exists()


def open_sessions(folder: Path) -> Table:
    """Finds the files below `sessions/`, in the order of their timestamps.

    Raises:
      DataError: there are none, a column is missing or of another type, sessions have both ads of
        their own and books, or they name creatives and the log has none.
    """
    offered, other = (BOOK_ID, ADS) if names_books(folder) else (ADS, BOOK_ID)
    named, unnamed = (CREATIVES, {}) if has_creatives(folder) else ({}, CREATIVES)
    table = open_table(
        folder / "sessions",
        REQUIRED | offered | named,
        OPTIONAL | other | unnamed,
        order_by="timestamp",
    )
    for file in table.files:
        for column in (file.usable | file.unknown.keys()) & other.keys():
            raise DataError(file.path, OWN_ADS_OR_BOOKS, column)
        for column in sorted((file.usable | file.unknown.keys()) & unnamed.keys()):
            rule = f"the file does not exist, but {file.path}, column '{column}' names creatives"
            raise DataError(folder / "creatives.parquet", rule)
    return table


def check_sessions(
    table: Table,
    num_pois: int,
    creative_poi: np.ndarray | None,
    books: BookIndex | None,
    num_slots: int | None,
    progress: Callable[[int, int], None],
) -> SessionTotals:
    """Checks every session.

    Args:
      table: the sessions.
      num_pois: P.
      creative_poi: `[R]` POI of each creative; none if the log has no creatives.
      books: those that sessions name; none if each session holds ads of its own.
      num_slots: K, the most items that may be shown; none for no bound.
      progress: called with (rows checked, rows in all).

    Raises:
      DataError: at the first row that breaks a rule.
    """
    if not table.num_rows:
        raise DataError(table.path, "there are no sessions")
    optional = (name for name in OPTIONAL if table.has(name))
    named = () if creative_poi is None else CREATIVES
    columns = [*REQUIRED, *named, *(ADS if books is None else BOOK_ID), *optional]
    totals = SessionTotals()
    before = None
    for part in parts(table, columns):
        _check_time(part, before)
        history = _check_history(part, num_pois, creative_poi)
        shown = slate_rules.check_shown(part, num_pois, creative_poi, num_slots)
        num_ads, organic = slate_rules.check_candidates(part, shown, num_pois, books)
        slate_rules.check_feedback(part, shown)
        width = _check_context(part, totals.context_width)
        totals = totals.add(history, shown, num_ads, organic, width)
        before = part
        progress(totals.rows, table.num_rows)
    return totals


def require_impressions(table: Table, totals: SessionTotals):
    """Refuses a log in which nothing was shown.

    Raises:
      DataError: names the column and the rule.
    """
    if not totals.shown:
        raise DataError(table.path, "nothing was shown in any session", "shown_poi")


def require_own_ads(table: Table, totals: SessionTotals):
    """Refuses a log without books in which nothing was for sale.

    Raises:
      DataError: names the column and the rule.
    """
    if not totals.most_ads:
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


def _check_history(part: Part, num_pois: int, creative_poi: np.ndarray | None) -> Ragged:
    history = part.ids("history_poi", num_pois, "POI")
    if creative_poi is not None:
        slate_rules.check_creatives(part, "history_creative", "history_poi", history, creative_poi)
    return history


def _check_context(part: Part, width: int) -> int:
    """Checks contexts; returns their width, which is that of the rows before if there are any."""
    if "context" not in part.table.column_names:
        return 0
    return part.embeddings("context", width or None, ("a context", "contexts")).shape[1]
