"""A valid dataset folder in figures, with warnings of what looks wrong but breaks no rule."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ega_jax.data import item_rules, log_statistics
from ega_jax.data.ad_logs import SPLITS, Fractions, split_bounds
from ega_jax.data.checks import parts
from ega_jax.data.counts import Histogram
from ega_jax.data.not_learned import not_learned
from ega_jax.data.offers import BookAds, OwnAds
from ega_jax.data.reading import holds_dates
from ega_jax.data.schema import Progress, Summary
from ega_jax.data.sequence_rules import SHORTEST, open_sequences, training_lengths
from ega_jax.data.session_rules import open_sessions, require_shown
from ega_jax.data.tables import Table

MANY = 0.1  # Share of embeddings that repeat, or of their values that never vary, warned of.


@dataclasses.dataclass(frozen=True)
class Description:
    """What a folder holds."""

    facts: dict[str, Any]  # name -> figure, list of figures, or a dict of them.
    warnings: tuple[str, ...]


def describe(
    folder: Path | str,
    summary: Summary,
    fractions: Fractions,
    progress: Progress = lambda done, total: None,
) -> Description:
    """Counts what is in a folder that `schema.validate` found valid, in one streamed pass.

    Args:
      folder: the dataset.
      summary: what `schema.validate` returned.
      fractions: shares of the splits "pretrain", "align" and "tune" of an ad log.
      progress: called with (rows read, rows in all).

    Raises:
      DataError: nothing was shown in the split "pretrain" of an ad log.
    """
    if summary.format == "sequences":
        return _describe_sequences(Path(folder), summary, progress)
    return _describe_log(Path(folder), summary, fractions, progress)


def _describe_log(
    folder: Path, summary: Summary, fractions: Fractions, progress: Progress
) -> Description:
    pois = item_rules.open_pois(folder)
    sessions, bounds = open_sessions(folder), split_bounds(fractions, summary.num_rows)
    require_shown(sessions, bounds[1])
    offers = BookAds.of(folder) if summary.num_books else OwnAds()
    found = log_statistics.count_sessions(sessions, offers, bounds, progress)
    creative_facts, creative_warnings = _describe_creatives(folder, summary)
    facts = {
        "format": "ad log",
        "sessions": summary.num_rows,
        "POIs": summary.num_items,
        "POI embedding width": summary.embedding_width,
        **creative_facts,
        "slots (K)": summary.num_slots,
        **({"context width (X)": summary.context_width} if summary.context_width else {}),
        **log_statistics.session_facts(found),
        **_time_facts(found.first_time, found.last_time, sessions.files[0].has_dates),
        "split": dict(zip(SPLITS, np.diff(bounds).tolist(), strict=True)),
    }
    warnings = [
        *not_learned(summary),
        *_embedding_warnings(pois, "embedding"),
        *_column_warnings(sessions),
        *log_statistics.session_warnings(found, bounds, SPLITS),
        *creative_warnings,
    ]
    return Description(facts, tuple(warnings))


def _describe_creatives(folder: Path, summary: Summary) -> tuple[dict[str, Any], list[str]]:
    """Figures of the creatives, if there are any, and warnings."""
    if not summary.has_creatives:
        return {"creatives": 0}, []
    table = item_rules.open_creatives(folder)
    owned = Histogram().add(_owned(table, summary.num_items))
    warnings = _embedding_warnings(table, "embedding")
    if without := int(owned.counts[0]):
        warnings.append(f"{without} of {summary.num_items} POIs have no creative")
    facts = {
        "creatives": summary.num_creatives,
        "creative embedding width": summary.creative_width,
        "creatives per POI": owned.describe(),
    }
    return facts, warnings


def _owned(creatives: Table, num_pois: int) -> np.ndarray:
    """`[P]` how many creatives each POI has."""
    counted = np.zeros(num_pois, np.int64)
    for part in parts(creatives, ["poi_id"]):
        counted += np.bincount(part.numbers("poi_id", np.int64), minlength=num_pois)
    return counted


def _describe_sequences(folder: Path, summary: Summary, progress: Progress) -> Description:
    items, sequences = item_rules.open_items(folder), open_sequences(folder)
    has_times = sequences.has("timestamps")
    lengths, taken, ends, done = Histogram(), np.zeros(summary.num_items, np.int64), [], 0
    for part in parts(sequences, ["items", *(["timestamps"] if has_times else [])]):
        lists = part.lists("items", np.int64)
        lengths = lengths.add(lists.lengths)
        taken += np.bincount(lists.values, minlength=summary.num_items)
        if has_times:
            times = part.lists("timestamps", np.int64, null_is_empty=True).values
            ends += [times.min(), times.max()] if len(times) else []
        done += lists.num_rows
        progress(done, summary.num_rows)
    has_dates = has_times and holds_dates(sequences, "timestamps")
    facts = {
        "format": "sequences",
        "sequences": summary.num_rows,
        "items": summary.num_items,
        "item embedding width": summary.embedding_width,
        "images": summary.num_creatives,
        "image embedding width": summary.creative_width,
        "actions": summary.num_actions,
        "sequence length": lengths.describe(),
        **(_time_facts(int(min(ends)), int(max(ends)), has_dates) if ends else {}),
        "split": _split_sizes(lengths),
    }
    unseen = int((taken == 0).sum())
    vectors = ["embedding", *(["image_embedding"] if summary.num_creatives else [])]
    warnings = [warning for name in vectors for warning in _embedding_warnings(items, name)]
    warnings += [*_column_warnings(items), *_column_warnings(sequences)]
    if unseen:
        warnings.append(f"{unseen} of {summary.num_items} items are in no sequence")
    return Description(facts, tuple(warnings))


def _split_sizes(lengths: Histogram) -> dict[str, int]:
    """Sequences that are trained on, and those that are evaluated."""
    length = np.arange(len(lengths.counts))
    evaluated = int(lengths.counts[length >= SHORTEST].sum())
    trained = int(lengths.counts[training_lengths(length) >= 2].sum())
    return {"train": trained, "validation": evaluated, "test": evaluated}


def _time_facts(first: int | None, last: int | None, has_dates: bool) -> dict[str, str]:
    """First and last time, of timestamps in microseconds or of integers in seconds."""
    shown = [_date(time, 1e6 if has_dates else 1) for time in (first, last) if time is not None]
    return dict(zip(("first time", "last time"), shown, strict=False))


def _date(time: int, per_second: float) -> str:
    """A date, with the integer that it is stored as if that counts seconds."""
    try:
        date = datetime.datetime.fromtimestamp(time / per_second, datetime.UTC)
    except (ValueError, OverflowError, OSError):  # Not in seconds, or far from today.
        return str(time)
    return f"{date:%Y-%m-%d %H:%M:%S}" + (f" ({time})" if per_second == 1 else "")


def _embedding_warnings(table: Table, column: str) -> list[str]:
    """Warns of embeddings that say little: the same in many rows, or in every row in part."""
    hashes, low, high = [], np.inf, -np.inf
    for part in parts(table, [column]):
        matrix = part.embeddings(column, None)
        hashes.append(_hashes(matrix))
        low, high = np.minimum(low, matrix.min(axis=0)), np.maximum(high, matrix.max(axis=0))
    where, warnings = f"{table.path}, column '{column}'", []
    repeats = table.num_rows - len(np.unique(np.concatenate(hashes)))
    if repeats > MANY * table.num_rows:
        warnings.append(f"{where}: {repeats} of {table.num_rows} rows repeat an earlier row's")
    constant = int(np.sum(low == high))
    if table.num_rows > 1 and constant > MANY * np.size(low):
        warnings.append(f"{where}: {constant} of {np.size(low)} values are the same in every row")
    return warnings


def _hashes(matrix: np.ndarray) -> np.ndarray:
    """`[rows]` a number for each row `[E]`, the same for the same row and hardly for another."""
    bits = np.ascontiguousarray(matrix + 0.0, np.float32).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(0).integers(2**64, size=bits.shape[1], dtype=np.uint64) | 1
    return bits @ factors


def _column_warnings(table: Table) -> list[str]:
    """Warns of optional columns that are there and yet not read."""
    warnings = []
    for column in sorted({name for file in table.files for name in (*file.usable, *file.unknown)}):
        lacking = [file for file in table.files if column not in file.usable]
        if not lacking:
            continue
        first, rule = lacking[0], f"{len(lacking)} of {len(table.files)} files have no value of it"
        if column in first.unknown:
            rule = f"a column of {first.unknown[column]} is not read"
        warnings.append(f"{first.path}, column '{column}': left out, {rule}")
    return warnings
