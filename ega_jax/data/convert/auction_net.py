"""AuctionNet (Su et al., arXiv 2412.10798): all bids of every impression opportunity, by Alimama.

A row is the bid of one advertiser for one opportunity (`pvIndex`). An advertiser becomes a POI, an
opportunity a request, its winners the slate. The only response in the log is a conversion, so a
click stands for one. A bid is paid per impression; divided by `pValue`, the probability of a
conversion, it becomes the bid for one conversion. `pValue` of every advertiser and the time of day
become the context. A winner that was not exposed stays in its slot, as an item without response.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ega_jax.data.convert.ad_log import AdLog, list_array, matrix_array, one_hot, session_table
from ega_jax.data.convert.csv_columns import read_columns, require
from ega_jax.data.tables import DataError
from ega_jax.errors import UserError

SLOTS = 3  # K of the auctions.
STEPS = 48  # Time steps of a period, which stands for a day.
DAY = 86_400  # Seconds.
LEAST = 1e-6  # Least pValue, so that its logarithm and the bid divided by it are finite.
_ADVERTISER = ("advertiserNumber", "advertiserCategoryIndex", "budget", "CPAConstraint")
_REQUEST = ("deliveryPeriodIndex", "timeStepIndex", "pvIndex")
_OFFER = ("advertiserNumber", "pValue", "bid", "adSlot", "conversionAction")

Columns = Mapping[str, np.ndarray]  # Name -> [rows] float64.


def auction_net(logs: Sequence[Path], items: Path | None) -> AdLog:
    """Reads files of periods (`period-7.csv`, ...), which must follow each other in time.

    The rows of a file may be in any order. One file is held in memory, at about 150 bytes a row.
    """
    if items is not None:
        raise UserError("auction_net has no file of items: leave out --metadata")
    advertisers = Advertisers.read(logs[0])
    return AdLog(
        pois=advertisers.pois(),
        sessions=_sessions(logs, advertisers),
        num_slots=SLOTS,
        remarks=(
            "a click stands for a conversion, the only response in the log; a bid for an "
            "impression is divided by its pValue, the bid for a conversion results",
            f"context: log pValue of {len(advertisers.number)} advertisers, time of day",
            "left out: remainingBudget, pValueSigma, cost, isExposed, leastWinningCost, isEnd",
        ),
    )


@dataclasses.dataclass(frozen=True)
class Advertisers:
    """The advertisers of a log, in the order of their numbers."""

    path: Path  # the file that names them.
    number: np.ndarray  # [P] int64, rising.
    category: np.ndarray  # [P]
    budget: np.ndarray  # [P]
    cpa: np.ndarray  # [P] the most they pay for a conversion.

    @classmethod
    def read(cls, path: Path) -> "Advertisers":
        """Reads the advertisers of the first period as they first come in its file."""
        rows = _read(path, _ADVERTISER)
        number, first = np.unique(rows["advertiserNumber"].astype(np.int64), return_index=True)
        return cls(path, number, *(rows[name][first] for name in _ADVERTISER[1:]))

    def pois(self) -> pa.Table:
        """`pois.parquet`: category by class, and the logarithms of budget and CPA constraint."""
        amounts = np.log1p(np.maximum(np.stack([self.budget, self.cpa], axis=1), 0.0))
        scaled = (amounts - amounts.mean(axis=0)) / np.maximum(amounts.std(axis=0), 1e-6)
        embedding = np.hstack([one_hot(self.category, np.unique(self.category)), scaled])
        return pa.table(
            {
                "poi_id": np.arange(len(self.number), dtype=np.int32),
                "source_id": self.number,
                "title": [f"advertiser {number}" for number in self.number],
                "category": [f"category {category:g}" for category in self.category],
                "embedding": matrix_array(embedding),
            }
        )

    def places(self, path: Path, numbers: np.ndarray) -> np.ndarray:
        """`[rows]` int32 the POI of each row's advertiser.

        Raises:
          DataError: the first file does not have it.
        """
        ok = np.isin(numbers, self.number)
        require(ok, path, "advertiserNumber", f"{self.path} has no such advertiser", numbers)
        return np.searchsorted(self.number, numbers).astype(np.int32)


def _read(path: Path, names: Sequence[str]) -> Columns:
    # The environment that made the data writes whole numbers as floats.
    table = read_columns(path, dict.fromkeys(names, pa.float64()))
    return {name: table[name].to_numpy() for name in names}


def _sessions(logs: Sequence[Path], advertisers: Advertisers) -> Iterator[pa.Table]:
    last = -1.0
    for path in logs:
        rows = _read(path, (*_REQUEST, *_OFFER))
        _check(path, rows)
        first = rows["deliveryPeriodIndex"].min()
        if first <= last:
            rule = f"periods must rise from file to file; found {first:g} after {last:g}"
            raise DataError(path, rule, "deliveryPeriodIndex")
        last = rows["deliveryPeriodIndex"].max()
        poi = advertisers.places(path, rows["advertiserNumber"])
        yield _sessions_of(path, rows, poi, len(advertisers.number))


def _check(path: Path, rows: Columns) -> None:
    """Holds if values are in their ranges.

    Raises:
      DataError: names the first that is not.
    """
    slot, converted = rows["adSlot"], rows["conversionAction"]
    rules = {
        "timeStepIndex": (0, STEPS, f"a time step must be from 0 to {STEPS}"),
        "pValue": (0, 1, "a pValue must be from 0 to 1"),
        "bid": (0, 1e20, "a bid must be from 0 to 1e20"),
        "deliveryPeriodIndex": (0, 1e6, "a period must be from 0 to 1e6"),
    }
    for column, (low, high, rule) in rules.items():
        values = rows[column]
        require((values >= low) & (values <= high), path, column, rule, values)
    require(np.isin(slot, range(SLOTS + 1)), path, "adSlot", f"a slot must be in 0..{SLOTS}", slot)
    ok = (converted == 0) | ((converted == 1) & (slot > 0))
    rule = "a conversion must be 0, or 1 for an ad with a slot"
    require(ok, path, "conversionAction", rule, converted)


def _sessions_of(path: Path, rows: Columns, poi: np.ndarray, num_pois: int) -> pa.Table:
    """The sessions of one file, from its rows in any order."""
    order = np.lexsort((poi, *(rows[name] for name in reversed(_REQUEST))))
    rows, poi = {name: values[order] for name, values in rows.items()}, poi[order]
    request = np.stack([rows[name] for name in _REQUEST])
    is_first = np.append(True, (request[:, 1:] != request[:, :-1]).any(axis=0))
    session = np.cumsum(is_first) - 1
    _require_one_bid(path, session * num_pois + poi, order)
    period, step, _ = request[:, is_first]
    p, slot = np.maximum(rows["pValue"], LEAST), rows["adSlot"]
    offered = (slot > 0) | (rows["bid"] > 0)  # Without budget, an advertiser bids 0.
    shown = np.flatnonzero(slot > 0)
    shown = shown[np.lexsort((slot[shown], session[shown]))]
    converted = rows["conversionAction"][shown] == 1
    num_offered, num_shown = (
        np.bincount(session[some], minlength=len(step)) for some in (offered, shown)
    )
    bids = (rows["bid"] / p).astype(np.float32)
    return session_table(
        pa.array((period * DAY + step * (DAY // STEPS)).astype(np.int64)),
        (list_array(poi[offered], num_offered), list_array(bids[offered], num_offered)),
        list_array(poi[shown], num_shown),
        clicked=converted,
        converted=converted,
        context=_context(session, poi, p, step, num_pois),
    )


def _require_one_bid(path: Path, offer: np.ndarray, order: np.ndarray) -> None:
    """Holds if no advertiser bids twice in one request.

    Args:
      path: the file.
      offer: `[rows]` a number for each pair of request and advertiser.
      order: `[rows]` the row of the file that each is in.

    Raises:
      DataError: names the row of a second bid.
    """
    in_file = np.empty_like(offer)
    in_file[order] = offer
    _, first = np.unique(in_file, return_index=True)
    if len(first) < len(offer):
        repeated = np.setdiff1d(np.arange(len(offer)), first)
        rule = "an advertiser may bid once for an opportunity"
        raise DataError(path, rule, "advertiserNumber", int(repeated[0]))


def _context(
    session: np.ndarray, poi: np.ndarray, p: np.ndarray, step: np.ndarray, num_pois: int
) -> np.ndarray:
    """`[sessions, P + 2]` float32 log pValue by advertiser, and sine and cosine of the time."""
    values = np.full((len(step), num_pois + 2), np.log(LEAST), np.float32)
    values[session, poi] = np.log(p)
    angle = 2 * np.pi * step / STEPS
    values[:, num_pois], values[:, num_pois + 1] = np.sin(angle), np.cos(angle)
    return values
