"""Sessions served by a system, slot by slot, with all ads that were for sale and their fates.

An ad that is not shown was below the reserve, or would be shown if ads were not limited, or was
found by the search and outranked, or was never found. These are tested in this order.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.auction.system import PreparedRequest, System, check_levers
from ega_jax.data.books import Books
from ega_jax.data.market.logger import Logger
from ega_jax.evaluation.misreports import prepare_batch
from ega_jax.evaluation.off_policy import slate_chances
from ega_jax.evaluation.serving import Judge
from ega_jax.mechanism import Mechanism
from ega_jax.phases.requests import request_of, without_blanks
from ega_jax.training.mesh import map_rows

Batch = Mapping[str, Any]
FATES = ("shown", "reserve", "limits", "outranked", "never generated")
SHOWN, RESERVE, LIMITS, OUTRANKED, NEVER = range(len(FATES))
NO_LIMITS = {"max_ads": 2**30, "min_gap": 0}


@dataclasses.dataclass(frozen=True)
class Visits:
    """`D` sessions with `K` slots each, and the `A` ads that were for sale in them."""

    session: np.ndarray  # [D] int32 ids of the sessions in the log.
    item: np.ndarray  # [D, K] int32 POIs served, -1 in empty slots.
    creative: np.ndarray  # [D, K] int32, likewise.
    is_ad: np.ndarray  # [D, K] bool.
    bid: np.ndarray  # [D, K] float32 currency per click.
    price: np.ndarray  # [D, K] float32 currency per click.
    click: Mapping[str, np.ndarray]  # Judge -> [D, K] click probabilities, 0 in empty slots.
    convert: Mapping[str, np.ndarray]  # Judge -> [D, K] probabilities, given a click.
    is_logged: np.ndarray  # [D, K] bool, whether the log showed the same item in the slot.
    was_clicked: np.ndarray  # [D, K] bool, whether the log's item in the slot was clicked.
    ad: np.ndarray  # [D, A] int32 POIs of the ads for sale, -1 padding.
    ad_bid: np.ndarray  # [D, A] float32 currency per click.
    # [D, K] float64 probability that the policy of the log shows the item after those above it, so
    # that their product is the propensity of the slate; NaN if the policy is unknown.
    chance: np.ndarray
    fate: np.ndarray  # [D, A] int8, a number of `FATES`; -1 where there is no ad.

    @property
    def judge(self) -> str:
        """The name of the better judge: `truth` if it is known."""
        return list(self.click)[-1]


@dataclasses.dataclass(frozen=True)
class Offer:
    """The ads for sale in a batch of requests."""

    poi: np.ndarray  # [B, A] int32, -1 padding.
    bid: np.ndarray  # [B, A] float32 currency per click.

    def among(self, poi: np.ndarray) -> np.ndarray:
        """Whether each ad is among the POIs `[B, V]` of its request, -1 for none; `[B, A]` bool."""
        found = [np.isin(ads, pois) for ads, pois in zip(self.poi, poi, strict=True)]
        return np.stack(found) & (self.poi >= 0)


def offer_in(batch: Batch, books: Books | None) -> Offer:
    """The ads for sale in a batch, from its books or from the requests' own lists."""
    if books is not None:
        number = np.maximum(np.asarray(batch["book"]), 0)
        return Offer(*books.rows(number))
    return Offer(np.where(batch["is_ad"], batch["item"], -1), np.asarray(batch["bid"]))


def visit_batch(
    mechanism: Mechanism,
    batch: Batch,
    books: Books | None,
    judges: Mapping[str, Judge],
    rule: str | None = None,
    logger: Logger | None = None,
) -> Visits:
    """Serves one batch, without its blank rows.

    Args:
      mechanism: serves the batch.
      batch: of a log; no row is blank before the last request.
      books: the log's books; None if requests have lists of their own.
      judges: by name, the best one last.
      rule: the payment rule; default: the mechanism's.
      logger: the policy of the log; None if it is unknown.
    """
    batch, real = without_blanks(batch)  # No request may be blank.
    slate = jax.tree.map(np.asarray, mechanism.allocate(request_of(batch), rule))
    responses = {name: judge(batch, slate) for name, judge in judges.items()}
    offer = offer_in(batch, books)
    seen = Visits(
        session=batch["session"],
        item=slate.items,
        creative=slate.creatives,
        is_ad=slate.is_ad,
        bid=slate.bid,
        price=slate.price_per_click,
        click={name: np.asarray(click) for name, (click, _, _) in responses.items()},
        convert={name: np.asarray(convert) for name, (_, _, convert) in responses.items()},
        is_logged=(slate.items == batch["shown_poi"]) & (slate.items >= 0),
        was_clicked=np.asarray(batch["click_poi"]),
        ad=offer.poi,
        ad_bid=offer.bid,
        chance=np.full(slate.items.shape, np.nan)
        if logger is None or books is None
        else slate_chances(logger, batch, books, slate),
        fate=_fates(mechanism, batch, offer, _least_bids(mechanism, batch, books)),
    )
    return Visits(**{name: jax.tree.map(lambda x: x[real], x) for name, x in vars(seen).items()})


def _least_bids(mechanism: Mechanism, batch: Batch, books: Books | None) -> np.ndarray:
    """The reserves of the ads for sale in a batch, `[B, A]` or `[]` currency per click."""
    least, book = np.asarray(mechanism.levers.reserve), mechanism.system.book
    if books is None or book is None:
        return least
    reserves = dataclasses.replace(books, bid=np.asarray(book.reserve))
    return np.maximum(least, offer_in(batch, reserves).bid)


def _fates(mechanism: Mechanism, batch: Batch, offer: Offer, least_bid: np.ndarray) -> np.ndarray:
    """The fate `[B, A]` of each ad for sale in a batch."""
    system, request, levers = mechanism.system, request_of(batch), mechanism.levers
    free = check_levers(levers, NO_LIMITS)
    shown, rivals = _ads(system, prepare_batch(system, request, levers))
    shown_freely, _ = _ads(system, prepare_batch(system, request, free))
    fate = np.full(offer.poi.shape, NEVER, np.int8)
    fate[offer.among(np.asarray(rivals))] = OUTRANKED
    fate[offer.among(np.asarray(shown_freely))] = LIMITS
    fate[offer.bid < least_bid] = RESERVE
    fate[offer.among(np.asarray(shown))] = SHOWN
    fate[offer.poi < 0] = -1
    return fate


@jax.jit
def _ads(system: System, prepared: PreparedRequest) -> tuple[jax.Array, jax.Array]:
    """The POIs of the ads shown `[B, K]`, and of all that competed `[B, V]`; -1 for none."""

    def one(prepared: PreparedRequest) -> tuple[jax.Array, jax.Array]:
        allocation, menu = system.allocate(prepared)
        shown, rivals = (jnp.where(x.ad >= 0, x.item, -1) for x in (allocation.ads, menu.rivals))
        return shown, rivals

    return map_rows(one, prepared)
