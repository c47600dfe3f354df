"""Ad logs: requests with candidates, slates and feedback, streamed from `sessions/`.

Ad books are in memory: a session of a log with books refers to one by its number.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ega_jax.data.book_rules import book_numbers
from ega_jax.data.books import Books
from ega_jax.data.columns import to_numpy
from ega_jax.data.item_rules import open_creatives, open_pois
from ega_jax.data.ragged import Ragged
from ega_jax.data.reading import read_matrix, read_numbers
from ega_jax.data.recorded import RECORDED, recorded_values
from ega_jax.data.row_groups import RowGroup, clipped, row_groups_of
from ega_jax.data.schema import Summary
from ega_jax.data.session_rules import open_sessions, require_shown
from ega_jax.errors import UserError

Batch = dict[str, np.ndarray]

SPLITS = ("pretrain", "align", "tune", "test")  # In time order.
Fractions = tuple[float, float, float]  # Shares of all splits but the last, which is the rest.

_LISTS = {
    "history_poi": np.int32,
    "organic_poi": np.int32,
    "shown_poi": np.int32,
    "shown_is_ad": bool,
    "click_poi": bool,
    "click_image": bool,
    "convert": bool,
}
# Of a log with creatives -> the column of POIs that stands for it in a log without.
_CREATIVES = {"history_creative": "history_poi", "shown_creative": "shown_poi"}
_ADS = {"ad_poi": np.int32, "ad_bid": np.float32}  # Of a session that names no book.
_SLOTS = {  # Column with one value a slot -> the value of an empty slot.
    "shown_poi": -1,
    "shown_creative": -1,
    "shown_is_ad": False,
    "click_poi": False,
    "click_image": False,
    "convert": False,
}


@dataclasses.dataclass(frozen=True)
class SessionPool:
    """Decoded sessions."""

    lists: dict[str, Ragged]
    session: np.ndarray  # [rows] int32 session ids.
    book: np.ndarray | None  # [rows] int32 numbers of their books, in a log with books.
    recorded: Batch  # Optional columns: `context` [rows, X], `explored` [rows], `propensity`.


@dataclasses.dataclass(frozen=True)
class AdLogDataset:
    """A folder in the ad-log format: catalogue and books in memory, the sessions on disk."""

    summary: Summary
    item_embedding: np.ndarray  # [P, E] float32.
    # [R, E'] float32; without creatives, R = P and each POI stands for its only one.
    creative_embedding: np.ndarray
    creative_poi: np.ndarray  # [R] int32, the POI that owns each creative.
    row_groups: tuple[RowGroup, ...]  # all sessions, in time order.
    fractions: Fractions
    books: Books | None = None  # none if every session holds its ads itself.
    recorded: tuple[str, ...] = ()  # the optional columns that all sessions have.

    @classmethod
    def load(cls, folder: Path | str, summary: Summary, fractions: Fractions) -> "AdLogDataset":
        """Opens a folder that `schema.validate` found valid, with the summary it returned.

        Raises:
          UserError: a fraction is negative, their sum is above 1, or nothing was shown in the split
            "pretrain".
        """
        if min(fractions) < 0 or sum(fractions) > 1:
            raise UserError(
                f"data.fractions is {fractions}: three shares, at least 0, that sum to 1 at most"
            )
        sessions = open_sessions(Path(folder))
        require_shown(sessions, split_bounds(fractions, summary.num_rows)[1])
        embedding = read_matrix(open_pois(Path(folder)), "embedding")
        creative_embedding, creative_poi = embedding, np.arange(len(embedding), dtype=np.int32)
        if summary.has_creatives:
            creatives = open_creatives(Path(folder))
            creative_embedding = read_matrix(creatives, "embedding")
            creative_poi = read_numbers(creatives, "poi_id", np.int32)
        return cls(
            summary=summary,
            item_embedding=embedding,
            creative_embedding=creative_embedding,
            creative_poi=creative_poi,
            row_groups=row_groups_of(sessions),
            fractions=fractions,
            books=Books.load(Path(folder)) if summary.num_books else None,
            recorded=tuple(name for name in RECORDED if sessions.has(name)),
        )

    def split(self, name: str) -> tuple[RowGroup, ...]:
        """The sessions of one of `SPLITS`."""
        bounds = split_bounds(self.fractions, self.summary.num_rows).tolist()
        first, last = bounds[SPLITS.index(name)], bounds[SPLITS.index(name) + 1]
        return clipped(self.row_groups, first, last)

    def first_uses(self) -> np.ndarray:
        """The row of the first session that names each book, `[books]`; the row count if none does.

        Rows are in time order.
        """
        assert self.books is not None, "the log has no books"
        found = np.full(len(self.books.book_id), self.summary.num_rows)
        before = 0
        for group in self.row_groups:
            named = to_numpy(group.read(["book_id"])["book_id"], np.int64)
            book, row = np.unique(book_numbers(self.books.book_id, named), return_index=True)
            found[book] = np.minimum(found[book], before + row)
            before += len(named)
        return found

    def recorded_in(self, split: str, column: str) -> Iterator[np.ndarray]:
        """Reads one of the optional columns of a split, some rows at a time.

        Args:
          split: one of `SPLITS`.
          column: one of `recorded`.

        Yields:
          `[rows, ...]` as batches carry the column.
        """
        for group in self.split(split):
            yield recorded_values(group.read([column]), column, self.summary.num_slots)


def split_bounds(fractions: Fractions, num_rows: int) -> np.ndarray:
    """`[5]` int, the row at which each split begins, and the number of rows."""
    shares = np.cumsum([0.0, *fractions])
    return np.round(np.append(shares, 1.0) * num_rows).astype(int)


@dataclasses.dataclass(frozen=True)
class LoggedSessions:
    """The rows of one split of an ad log, as batches of fixed shapes."""

    row_groups: tuple[RowGroup, ...]
    history_length: int  # T
    num_slots: int  # K
    num_candidates: int  # N, or M, the most organic items, in a log with books.
    exposure_weight: float  # weight of what was shown but not clicked; a click has 1.
    books: Books | None = None  # none if every session holds its ads itself.
    recorded: tuple[str, ...] = ()  # optional columns to read.
    has_creatives: bool = True  # False: POIs stand for creatives.

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Rows of each row group."""
        return tuple(group.stop - group.start for group in self.row_groups)

    def load(self, groups: tuple[int, ...]) -> SessionPool:
        """Reads and joins some row groups."""
        kinds = _LISTS | (_ADS if self.books is None else {})
        if self.has_creatives:
            kinds |= dict.fromkeys(_CREATIVES, np.int32)
        columns = [*kinds, "session_id", *(["book_id"] if self.books is not None else [])]
        columns += self.recorded
        # Types may differ by file.
        tables = [self.row_groups[group].read(columns) for group in groups]
        lists = lambda name, dtype: Ragged.joined(
            [Ragged.from_arrow(table[name], dtype) for table in tables]
        )
        numbers = lambda name, dtype: np.concatenate(
            [to_numpy(table[name], dtype) for table in tables]
        )
        book = None
        if self.books is not None:
            book = book_numbers(self.books.book_id, numbers("book_id", np.int64))
        found = {name: lists(name, dtype) for name, dtype in kinds.items()}
        return SessionPool(
            lists={name: found[pois] for name, pois in _CREATIVES.items()} | found,
            session=numbers("session_id", np.int32),
            book=book,
            recorded={
                name: np.concatenate(
                    [recorded_values(table, name, self.num_slots) for table in tables]
                )
                for name in self.recorded
            },
        )

    def examples(self, pool: SessionPool, rows: np.ndarray, epoch: int) -> Batch:
        """Examples of some rows, the same in every epoch."""
        batch = {
            name: pool.lists[name].last(rows, self.history_length, -1)
            for name in ("history_poi", "history_creative")
        }
        if pool.book is None:
            batch |= _candidates(pool.lists, rows, self.num_candidates)
        else:
            batch["organic"] = pool.lists["organic_poi"].first(rows, self.num_candidates, -1)
            batch["book"] = pool.book[rows]
        for name, empty in _SLOTS.items():
            batch[name] = pool.lists[name].first(rows, self.num_slots, empty)
        batch |= {name: values[rows] for name, values in pool.recorded.items()}
        batch["session"] = pool.session[rows]
        batch["target_poi"] = batch["shown_poi"]
        batch["target_creative"] = batch["shown_creative"]
        weight = np.where(batch["click_poi"] | batch["click_image"], 1.0, self.exposure_weight)
        batch["target_weight"] = (weight * (batch["shown_poi"] >= 0)).astype(np.float32)
        return batch


def _candidates(lists: dict[str, Ragged], rows: np.ndarray, num_candidates: int) -> Batch:
    """Ads, then organic items in upstream order, `[B, N]`, padded with -1."""
    ads, organic = lists["ad_poi"], lists["organic_poi"]
    places = np.broadcast_to(np.arange(num_candidates), (len(rows), num_candidates))
    num_ads = ads.lengths[rows][:, None]
    is_ad = places < num_ads
    paid = ads.gather(rows, places, -1)
    item = np.where(is_ad, paid, organic.gather(rows, places - num_ads, -1))
    return {
        "item": item,
        "is_ad": is_ad,
        "bid": lists["ad_bid"].gather(rows, places, 0.0),
    }
