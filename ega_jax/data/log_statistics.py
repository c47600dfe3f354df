"""What the sessions of an ad log hold, in figures: counted in one pass, a part at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ega_jax.data.checks import Part, parts
from ega_jax.data.columns import is_list, to_numpy
from ega_jax.data.counts import Distinct, Histogram, Sample
from ega_jax.data.offers import BookAds, OwnAds
from ega_jax.data.tables import Table

READ = (
    *("user_id", "timestamp", "history_poi", "shown_poi"),
    *("shown_is_ad", "click_poi", "click_image", "convert"),
)
RECORDED = ("explored", "propensity")  # Read if all sessions have them.
EMPTY = Histogram()
SHARES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)  # of the quantiles of bids and propensities.


@dataclasses.dataclass(frozen=True)
class LogStatistics:
    """Counts over some sessions; a histogram of places counts slots."""

    offers: OwnAds | BookAds  # what was for sale.
    users: Distinct = dataclasses.field(default_factory=Distinct)
    first_time: int | None = None
    last_time: int | None = None
    history: Histogram = EMPTY  # lengths.
    shown: Histogram = EMPTY  # items per slate.
    ads_shown: Histogram = EMPTY  # ads per slate.
    slots: Histogram = EMPTY  # places of items shown.
    clicks: Histogram = EMPTY  # places of clicks on the POI,
    image_clicks: Histogram = EMPTY  # and on the creative.
    conversions: Histogram = EMPTY  # places.
    clicks_of_split: Histogram = EMPTY  # on either, by number of the split.
    explored: Histogram = EMPTY  # 1 for a slate that explores, 0 for another.
    propensity: Sample = dataclasses.field(default_factory=Sample)  # of slates.

    def add(self, part: Part, bounds: np.ndarray) -> "LogStatistics":
        """Counts some more sessions.

        Args:
          part: their rows.
          bounds: `[5]` row at which each split begins, as `ad_logs.split_bounds`.
        """
        shown = part.lists("shown_poi", np.int64)
        row = shown.row_of_value()
        place = np.arange(len(row)) - shown.offsets[row]
        flags = {
            name: part.flags(name).values
            for name in ("shown_is_ad", "click_poi", "click_image", "convert")
        }
        clicked = row[flags["click_poi"] | flags["click_image"]]
        split = np.searchsorted(bounds[1:], part.rows_before + part.rows[clicked], side="right")
        time = part.numbers("timestamp", np.int64)
        ads_shown = np.bincount(row[flags["shown_is_ad"]], minlength=shown.num_rows)
        there = part.table.column_names
        explored = part.flag("explored").astype(int) if "explored" in there else np.zeros(0, int)
        propensity = slate_propensities(part) if "propensity" in there else np.zeros(0)
        return LogStatistics(
            offers=self.offers.add(part),
            users=self.users.add(part.numbers("user_id", np.int64)),
            first_time=int(time[0]) if self.first_time is None else self.first_time,
            last_time=int(time[-1]),
            history=self.history.add(part.lists("history_poi", np.int64).lengths),
            shown=self.shown.add(shown.lengths),
            ads_shown=self.ads_shown.add(ads_shown),
            slots=self.slots.add(place),
            clicks=self.clicks.add(place[flags["click_poi"]]),
            image_clicks=self.image_clicks.add(place[flags["click_image"]]),
            conversions=self.conversions.add(place[flags["convert"]]),
            clicks_of_split=self.clicks_of_split.add(split),
            explored=self.explored.add(explored),
            propensity=self.propensity.add(propensity),
        )

    def rate_by_slot(self, events: Histogram) -> list[float]:
        """Events of each slot over the items shown there."""
        shown = self.slots.counts
        return (events.padded(len(shown)) / np.maximum(shown, 1)).tolist()


def slate_propensities(part: Part) -> np.ndarray:
    """`[known rows]` float64 the propensities of slates, which a log may list slot by slot."""
    column = part.table["propensity"]
    if not is_list(column.type):
        return to_numpy(column.drop_null(), np.float64)
    lists = part.lists("propensity", np.float64, null_is_empty=True)
    logs = np.bincount(lists.row_of_value(), np.log(lists.values), lists.num_rows)
    return np.exp(logs[part.known("propensity")])


def count_sessions(
    table: Table,
    offers: OwnAds | BookAds,
    bounds: np.ndarray,
    progress: Callable[[int, int], None],
) -> LogStatistics:
    """Reads all sessions of a valid log once.

    Args:
      table: the sessions.
      offers: what is counted of what was for sale, before the first session.
      bounds: as in `LogStatistics.add`.
      progress: called with (rows read, rows in all).
    """
    statistics, done = LogStatistics(offers), 0
    recorded = [name for name in RECORDED if table.has(name)]
    for part in parts(table, [*READ, *offers.columns, *recorded]):
        statistics = statistics.add(part, bounds)
        done += len(part.rows)
        progress(done, table.num_rows)
    return statistics


def session_facts(found: LogStatistics) -> dict[str, Any]:
    """The figures of a log, by name."""
    shown, clicks = found.slots.total, found.clicks.total
    quantiles = zip(SHARES, found.offers.bids.quantiles(SHARES), strict=False)
    return {
        "users": found.users.total,
        "history length (T)": found.history.describe(),
        **found.offers.facts(),
        "items per slate": found.shown.describe(),
        "ads per slate": found.ads_shown.describe(),
        "ad share of slots": found.ads_shown.sum / max(shown, 1),
        "CTR of the POI": clicks / max(shown, 1),
        "CTR of the POI by slot": found.rate_by_slot(found.clicks),
        "CTR of the creative": found.image_clicks.total / max(shown, 1),
        "CTR of the creative by slot": found.rate_by_slot(found.image_clicks),
        "clicks": clicks,
        "conversions": found.conversions.total,
        "bid": {f"{100 * share:g} %": bid for share, bid in quantiles},
        **_recorded_facts(found),
    }


def _recorded_facts(found: LogStatistics) -> dict[str, Any]:
    """The figures of exploration and propensities, if the log has them."""
    facts: dict[str, Any] = {}
    if found.explored.total:
        facts["explored share of slates"] = found.explored.mean
    if found.propensity.seen:
        quantiles = zip(SHARES, found.propensity.quantiles(SHARES), strict=True)
        facts["propensity"] = {f"{100 * share:g} %": value for share, value in quantiles}
    return facts


def session_warnings(
    found: LogStatistics, bounds: np.ndarray, splits: tuple[str, ...]
) -> list[str]:
    """Warns of sessions that break no rule but look wrong.

    Args:
      found: the counts.
      bounds: `[5]` as in `LogStatistics.add`.
      splits: names of the splits.
    """
    warnings = found.offers.warnings()
    clicks = found.clicks_of_split.padded(len(splits))
    for name, size, clicked in zip(splits, np.diff(bounds), clicks, strict=True):
        if not size:
            warnings.append(f"the split '{name}' has no session; see config.data.fractions")
        elif not clicked:
            warnings.append(f"the split '{name}' has no click")
    lowest, highest = (found.offers.bids.quantiles((share,)) for share in (0.0, 1.0))
    checks = (
        (found.clicks.total == 0, "no POI was ever clicked"),
        (found.image_clicks.total == 0, "no creative was ever clicked"),
        (found.conversions.total == 0, "there is no conversion"),
        (found.clicks.total == found.slots.total, "everything shown was clicked"),
        (found.ads_shown.quantile(1.0) == 0, "no ad was ever shown"),
        (highest == [0.0], "every bid is 0"),
        (
            [0.0] != lowest == highest,
            "every bid is the same: an auction maximises clicks, and revenue counts them",
        ),
        (found.first_time == found.last_time, "all timestamps are equal: splits go by file name"),
    )
    warnings += [text for holds, text in checks if holds]
    if empty := int(found.shown.padded(1)[0]):
        warnings.append(f"nothing was shown in {empty} of {found.shown.total} sessions")
    return warnings
