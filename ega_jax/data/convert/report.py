"""What a conversion did, for its user to read."""

import dataclasses
import datetime

from ega_jax.data.convert.actions import Actions
from ega_jax.data.convert.raw_files import RawFile
from ega_jax.data.convert.records import RecordCounts
from ega_jax.data.schema import Summary

_YEAR_1973 = 1e8, 1e11  # in seconds, and in milliseconds.
_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3), (0.0, 1.0))  # (least time, its units a second)


@dataclasses.dataclass(frozen=True)
class ActionCounts:
    """What became of the actions that were read."""

    read: int
    repeats: int  # that share user, item and time with an earlier one.
    keep_repeats: bool
    kept: int  # after the k-core filter.
    tied: int  # of those kept, that share user and time with another.
    in_time_order: bool  # whether the file is, so that its order decides between those.
    times: tuple[int, int]  # the first and the last of those kept.

    @classmethod
    def of(
        cls, every: Actions, distinct: Actions, kept: Actions, keep_repeats: bool
    ) -> "ActionCounts":
        """Counts the actions before repeats are left out, after it, and after the filter."""
        return cls(
            read=len(every.time),
            repeats=len(every.time) - len(distinct.time),
            keep_repeats=keep_repeats,
            kept=len(kept.time),
            tied=int(kept.tied().sum()),
            in_time_order=every.in_time_order,
            times=(int(kept.time.min()), int(kept.time.max())),
        )

    def __str__(self) -> str:
        filtered = self.read - (0 if self.keep_repeats else self.repeats)
        by = "the file, which is in time order" if self.in_time_order else "a hash of user and item"
        first, last = self.times
        return "\n".join(
            [
                f"{self.repeats} repeats of (user, item, time) "
                + ("kept" if self.keep_repeats else "left out"),
                f"{self.kept} of {filtered} actions kept by the filter",
                f"{self.tied} of them ({self.tied / self.kept:.1%}) share user and time with "
                f"another; those are in the order of {by}",
                f"times from {first} to {last}{_dates(first, last)}{_warning(first, last)}",
            ]
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did."""

    files: tuple[RawFile, ...]
    actions: RecordCounts
    items: RecordCounts
    counts: ActionCounts
    repeated_items: int  # records of an item that was described before.
    items_without_text: int
    summary: Summary

    def __str__(self) -> str:
        return "\n".join(
            [
                f"files: {', '.join(map(str, self.files))}",
                f"actions: {self.actions}",
                f"items: {self.items}",
                str(self.counts),
                f"{self.repeated_items} repeated descriptions of items left out",
                f"{self.items_without_text} of {self.summary.num_items} items have no text",
                str(self.summary),
            ]
        )


def _dates(first: int, last: int) -> str:
    """Two times as dates, if both can be; the last tells their unit (seconds to nanoseconds)."""
    scale = next(scale for least, scale in _UNITS if abs(last) >= least)
    try:
        dates = [
            datetime.datetime.fromtimestamp(time / scale, datetime.UTC) for time in (first, last)
        ]
    except (ValueError, OverflowError, OSError):
        return ""
    return f" ({dates[0]:%Y-%m-%d} to {dates[1]:%Y-%m-%d})"


def _warning(first: int, last: int) -> str:
    """Says that some times seem to be seconds and others a finer unit, if so."""
    mixed = _YEAR_1973[0] <= first < _YEAR_1973[1] <= last
    return "; WARNING: seconds and finer units seem to be mixed" if mixed else ""
