"""The two input formats, and the check of a dataset folder before anything is trained on it.

*Sequences*: `items.parquet` and `sequences.parquet`, what users did, item by item.
*Ad logs*: `pois.parquet` and the files below `sessions/`, one row per request; mostly
`creatives.parquet`, without which each POI stands for its only creative, with the POI's embedding;
`dataset.json` may hold `{"num_slots": K, "max_ads": M}`. A session holds its ads itself or names a
book of those below `books/`. Each table is one file or a folder of parts.
Ids are row numbers. Sessions are in time order: their files are read in the order of their
timestamps, streamed, a row group at a time.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from ega_jax.data import book_rules, item_rules, sequence_rules, session_rules
from ega_jax.data.folders import detect_format
from ega_jax.data.tables import DataError

Progress = Callable[[int, int], None]  # (rows checked, rows in all)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a valid folder holds; counts fix the static shapes of its batches."""

    format: str  # "sequences" or "ad_log".
    num_items: int  # P.
    num_creatives: int  # R; 0 where items have none.
    embedding_width: int  # E of an item.
    creative_width: int  # E of a creative; 0 without creatives.
    num_rows: int  # sequences, or sessions.
    num_actions: int  # items in all sequences, or items shown.
    num_slots: int  # K; 1 for sequences.
    num_candidates: int  # N, the most a session holds itself: with books, of organic items alone.
    longest_history: int  # items; of a whole sequence for sequences.
    num_books: int = 0  # 0 if sessions hold their ads themselves, and for sequences.
    most_ads: int = 0  # of a book, or of a session without books; 0 for sequences.
    most_organic: int = 0  # organic items of a session; 0 for sequences.
    context_width: int = 0  # X; 0 without a context, and for sequences.
    max_ads: int = 0  # most ads that a slate may show, by `dataset.json`; 0: no limit.
    has_creatives: bool = True  # False: each POI of an ad log stands for its only creative.

    def __str__(self) -> str:
        return "\n".join(f"{name:>16}: {value}" for name, value in vars(self).items())


def validate(
    folder: Path | str,
    num_slots: int | None = None,
    progress: Progress = lambda done, total: None,
    for_training: bool = True,
) -> Summary:
    """Checks every row of a dataset folder against its format.

    Args:
      folder: the dataset.
      num_slots: K of an ad log; default: that of `dataset.json`, else the most items shown.
      progress: called with (rows checked, rows in all).
      for_training: also refuse what nothing can be learned from: embeddings that are all alike,
        sequences that are all too short, a log without anything shown or without ads for sale.

    Returns:
      Counts and widths.

    Raises:
      DataError: at the first row that breaks a rule, or if nothing can be learned.
    """
    folder = Path(folder)
    if detect_format(folder) == "sequences":
        return _validate_sequences(folder, progress, for_training)
    return _validate_ad_log(folder, num_slots, progress, for_training)


def _validate_sequences(folder: Path, progress: Progress, for_training: bool) -> Summary:
    item_table = item_rules.open_items(folder)
    items = item_rules.check_items(item_table)
    if for_training:
        item_rules.require_variety(item_table, items)
    sequences = sequence_rules.open_sequences(folder)
    totals = sequence_rules.check_sequences(sequences, items.num_rows, progress)
    if for_training:
        sequence_rules.require_examples(sequences, totals)
    return Summary(
        format="sequences",
        num_items=items.num_rows,
        num_creatives=items.num_rows if items.image_width else 0,
        embedding_width=items.width,
        creative_width=items.image_width,
        num_rows=totals.rows,
        num_actions=totals.actions,
        num_slots=1,
        num_candidates=0,
        longest_history=totals.longest,
    )


def _validate_ad_log(
    folder: Path, num_slots: int | None, progress: Progress, for_training: bool
) -> Summary:
    num_slots, max_ads = num_slots or _declared(folder, "num_slots"), _declared(folder, "max_ads")
    poi_table = item_rules.open_pois(folder)
    pois = item_rules.check_pois(poi_table)
    if for_training:
        item_rules.require_variety(poi_table, pois)
    creatives, creative_poi = pois, None
    if has_creatives := session_rules.has_creatives(folder):
        creative_table = item_rules.open_creatives(folder)
        creatives, creative_poi = item_rules.check_creatives(creative_table, pois)
        if for_training:
            item_rules.require_variety(creative_table, creatives)
    has_books, sessions = session_rules.names_books(folder), session_rules.open_sessions(folder)
    books = _check_books(folder, pois.num_rows, for_training) if has_books else None
    totals = session_rules.check_sessions(
        sessions, pois.num_rows, creative_poi, books, num_slots, progress
    )
    if for_training:
        session_rules.require_impressions(sessions, totals)
    if for_training and books is None:
        session_rules.require_own_ads(sessions, totals)
    return Summary(
        format="ad_log",
        num_items=pois.num_rows,
        num_creatives=creatives.num_rows,
        embedding_width=pois.width,
        creative_width=creatives.width,
        num_rows=totals.rows,
        num_actions=totals.shown,
        num_slots=num_slots or totals.most_shown,
        num_candidates=totals.most_candidates,
        longest_history=totals.longest_history,
        num_books=0 if books is None else len(books.book_id),
        most_ads=totals.most_ads if books is None else int(books.num_ads.max()),
        most_organic=totals.most_organic,
        context_width=totals.context_width,
        max_ads=max_ads or 0,
        has_creatives=has_creatives,
    )


def _check_books(folder: Path, num_pois: int, for_training: bool) -> book_rules.BookIndex:
    table = book_rules.open_books(folder)
    books = book_rules.check_books(table, num_pois)
    if for_training:
        book_rules.require_ads(table, books)
    return books


def _declared(folder: Path, name: str) -> int | None:
    """A positive whole number of `dataset.json`, None if it is not there."""
    path = folder / "dataset.json"
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig")).get(name)
    except (OSError, ValueError, AttributeError) as error:  # No file, not JSON, or no object.
        raise DataError(path, f"not a JSON object ({error})") from error
    if value is not None and (type(value) is not int or value < 1):
        raise DataError(path, f"{name} must be a positive integer, found {value!r}")
    return value
