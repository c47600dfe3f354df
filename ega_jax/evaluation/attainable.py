"""The best slate of a request: a local search on the true click probabilities.

The value of a slate is the sum of bid times true click probability. A slate fills as many slots as
it can, shows no item twice, and keeps the organic items in upstream order. The search starts from
several slates and repeatedly takes the best change of one ad, one position or one creative, until
no change gains. Its value is a lower bound of the best slate's; on requests small enough to
enumerate all slates, the two are equal in nearly all cases.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ega_jax.data.books import Books
from ega_jax.data.market.clicks import Truth
from ega_jax.evaluation.slate_rules import Array, SlateRules, picked
from ega_jax.phases.auction import real_rows, request_of
from ega_jax.types import repeats_an_ad

_ROWS = 4096  # Slates per call of the truth; a fixed size, so that it compiles once.
_GAIN = 1e-6  # Least relative gain of a change; less is rounding.
_STARTS = (0.0, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0)  # Shares of ads in the initial slates. The first
_BY_WORTH = 3  # ones show the ads of the highest value alone, the others random ads.

Changes = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """`D` requests with known true click probabilities."""

    truth: Truth
    session: np.ndarray  # [D] int32.
    request: Any  # A `Request` of NumPy arrays, [D, ...]; the ads of a book are listed.
    asked: Any  # The request as systems take it, [D, ...]: to a book, or the same.
    poi_creatives: np.ndarray  # [P, M] int32, -1 where none.

    @functools.cached_property
    def creatives(self) -> np.ndarray:
        """Creatives `[D, N, M]` of the candidates, -1 where none."""
        item = np.asarray(self.request.item)
        return np.where((item >= 0)[..., None], self.poi_creatives[item], -1)

    def clicks(self, row: np.ndarray, slate: np.ndarray, creative: np.ndarray) -> np.ndarray:
        """Returns true click probabilities `[X, K]` of slates of candidates in requests `[X]`."""
        item = picked(self.request.item, row, slate, -1)
        shown = self.session[row], item, creative, picked(self.request.is_ad, row, slate, False)
        found = np.zeros(slate.shape)
        for low in range(0, len(row), _ROWS):
            part = np.minimum(np.arange(low, low + _ROWS), len(row) - 1)
            found[part] = self.truth.responses(*(x[part] for x in shown)).click_poi
        return found

    def values(self, row: np.ndarray, slate: np.ndarray, creative: np.ndarray) -> np.ndarray:
        """Returns `[X]` float64, currency: each slate's sum of bid times click probability."""
        bid = picked(self.request.bid, row, slate, 0.0)
        return np.sum(bid * self.clicks(row, slate, creative), axis=-1)

    def clicks_alone(self, num_slots: int) -> np.ndarray:
        """Returns clicks `[D, N, M]` of each candidate and creative as the only item of a slate."""
        row, candidate, _ = np.indices(self.creatives.shape).reshape(3, -1)
        first = np.arange(num_slots) == 0
        alone = lambda x: np.where(first, x.reshape(-1, 1), -1)
        clicks = self.clicks(row, alone(candidate), alone(self.creatives))[:, 0]
        return clicks.reshape(self.creatives.shape)


def samples_of(
    batches: Iterable[Mapping[str, np.ndarray]],
    truth: Truth,
    poi_creatives: Array,
    books: Books | None = None,
) -> Iterator[Sample]:
    """Yields a sample per batch with the fields of a request and `session`; drops blank rows.

    Organic items whose POI is also an ad are left out.

    Args:
      batches: batches of a log.
      truth: its true click probabilities.
      poi_creatives: `[P, M]` creatives of each POI, -1 where none.
      books: its ad books, if it has any.
    """
    for batch in batches:
        real = real_rows(batch)
        kept = {name: np.asarray(x)[real] for name, x in batch.items()}
        lists = kept if books is None else kept | listed(kept, books)
        repeated = repeats_an_ad(lists["item"], lists["is_ad"])
        lists = lists | {"item": np.where(repeated, -1, lists["item"])}
        request = request_of({name: x for name, x in lists.items() if name != "book"})
        asked = request if books is None else request_of(kept)
        yield Sample(truth, kept["session"], request, asked, np.asarray(poi_creatives))


def listed(batch: Mapping[str, np.ndarray], books: Books) -> dict[str, np.ndarray]:
    """Lists of a batch's requests to books: the ads of the book, then the organic items."""
    poi, bid = books.rows(batch["book"])
    organic = batch["organic"]
    nothing = np.zeros(organic.shape)
    return {
        "item": np.concatenate([poi, organic], axis=1),
        "is_ad": np.concatenate([poi >= 0, nothing > 0], axis=1),
        "bid": np.concatenate([bid, nothing], axis=1, dtype=np.float32),
    }


@dataclasses.dataclass(frozen=True)
class Attainable:
    """The best slates found for `D` requests."""

    candidate: np.ndarray  # [D, K] int, -1 where a slot is empty.
    creative: np.ndarray  # [D, K] int, -1 where none.
    value: np.ndarray  # [D] float64, sum of bid times click probability, in currency.


def best_slates(
    sample: Sample,
    num_slots: int,
    allowed: np.ndarray,
    listed: np.ndarray | None = None,
    start: Attainable | None = None,
    max_ads: int | None = None,
) -> Attainable:
    """Searches for the slate of highest true value for each request.

    Args:
      sample: the requests.
      num_slots: K.
      allowed: `[D, N]` bool, the ads that may be shown.
      listed: `[D, L]` int candidates, -1 after the last: only these ads may be shown, in this
        order. Default: all allowed ads, in any order.
      start: more initial slates; the result is worth at least as much as these.
      max_ads: most ads in a slate; no limit by default.

    Returns:
      The slates, with the best creatives.

    Raises:
      ValueError: an initial slate breaks a rule.
    """
    rules = SlateRules.of(sample.request, num_slots, allowed, listed, max_ads)
    alone, everyone = sample.clicks_alone(num_slots), np.arange(len(allowed))
    wardrobes = best, plain = _wardrobes(sample, alone)
    worth = sample.request.bid * np.where(sample.creatives >= 0, alone, 0.0).max(-1)
    any_order = np.random.default_rng(0).random((len(_STARTS) - _BY_WORTH, *worth.shape))
    orders = [worth] * _BY_WORTH + [*any_order]
    ads = [rules.first_ads(order, share) for order, share in zip(orders, _STARTS, strict=True)]
    slates = [rules.filled(everyone, shown) for shown in ads]
    clothes = np.where(sample.request.is_ad, best, plain)
    creatives = [picked(clothes, everyone, slate, -1) for slate in slates]
    if start is not None:
        if not rules.obeyed(everyone, start.candidate).all():
            raise ValueError("a slate to start from breaks the rules of the search")
        slates.append(start.candidate)
        creatives.append(start.creative)
    states = np.tile(everyone, len(slates)), np.concatenate(slates), np.concatenate(creatives)
    found = _climb(sample, *states, wardrobes, rules.changes)
    winner = found.value.reshape(len(slates), -1).argmax(0) * len(everyone) + everyone
    return Attainable(found.candidate[winner], found.creative[winner], found.value[winner])


def best_creatives(sample: Sample, candidate: np.ndarray, creative: np.ndarray) -> Attainable:
    """Searches for the best creatives of slates `[D, K]` of candidates, from `creative`."""
    everyone = np.arange(len(candidate))
    return _climb(sample, everyone, candidate, creative, [], _no_change)


def _no_change(row: np.ndarray, slate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns no change, in the form of `SlateRules.changes`."""
    return slate[:, None][:, :0], np.zeros((len(row), 0), bool)


def _climb(
    sample: Sample,
    row: np.ndarray,
    slate: np.ndarray,
    creative: np.ndarray,
    wardrobes: Sequence[np.ndarray],
    changes: Changes,
) -> Attainable:
    """Applies the best change of each slate `[X, K]` or of one creative until none gains.

    A wardrobe `[D, N]` holds one creative per candidate; an item that is added to a slate is tried
    with its creative of each wardrobe.
    """
    slate, creative = slate.copy(), creative.copy()
    value = sample.values(row, slate, creative)
    active = np.arange(len(row))
    while active.size:
        now = row[active], slate[active], creative[active]
        redressed, there = _redressed(sample, *now)
        moved, is_legal = changes(*now[:2])
        dressed = [_dressed(*now, moved, wardrobe) for wardrobe in wardrobes]
        kept = np.broadcast_to(now[1][:, None], redressed.shape)
        slates = np.concatenate([kept, *[moved] * len(wardrobes)], axis=1)
        creatives = np.concatenate([redressed, *dressed], axis=1)
        where = np.concatenate([there, *[is_legal] * len(wardrobes)], axis=1)
        values = np.full(where.shape, -np.inf)
        of = np.nonzero(where)[0]
        values[where] = sample.values(now[0][of], slates[where], creatives[where])
        gains = np.flatnonzero(values.max(1) > value[active] * (1 + _GAIN))
        best, active = (gains, values.argmax(1)[gains]), active[gains]
        slate[active], creative[active], value[active] = slates[best], creatives[best], values[best]
    return Attainable(slate, creative, value)


def _dressed(
    row: np.ndarray,
    slate: np.ndarray,
    creative: np.ndarray,
    moved: np.ndarray,
    wardrobe: np.ndarray,
) -> np.ndarray:
    """Returns creatives of slates `moved [X, V, K]`; added items take theirs from the wardrobe."""
    same = (moved[..., None] == slate[:, None, None]) & (moved >= 0)[..., None]
    brought = np.take_along_axis(creative[:, None], same.argmax(-1), -1)
    return np.where(same.any(-1), brought, picked(wardrobe, row, moved, -1))


def _redressed(
    sample: Sample, row: np.ndarray, slate: np.ndarray, creative: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns creatives `[X, K * M, K]` that differ in one slot, and whether each exists."""
    options = picked(sample.creatives, row, slate, -1)[..., None]
    here = np.eye(slate.shape[1], dtype=bool)[:, None]
    changed = np.where(here, options, creative[:, None, None])
    shape = len(row), -1, slate.shape[1]
    return changed.reshape(shape), (options >= 0).reshape(shape[:2])


def _wardrobes(sample: Sample, clicks: np.ndarray) -> list[np.ndarray]:
    """Returns two wardrobes `[D, N]`: the creatives with the most and with the fewest clicks.

    `clicks` are those of candidates alone. A creative with few clicks takes the fewest clicks from
    its neighbours.
    """
    there = sample.creatives >= 0
    chosen = np.where(there, clicks, -1.0).argmax(-1), np.where(there, clicks, 2.0).argmin(-1)
    return [np.take_along_axis(sample.creatives, x[..., None], -1)[..., 0] for x in chosen]
