"""What each advertiser got and why it lost. An advertiser is a POI whose ads are for sale."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ega_jax.evaluation.visits import FATES, SHOWN, Visits


@dataclasses.dataclass(frozen=True)
class Accounts:
    """Expected totals of each of `P` POIs over the sessions served, `[P]` float64 each."""

    requests: np.ndarray  # In which its ad was for sale.
    bid: np.ndarray  # Its mean bid in these, currency per click; 0 without any.
    impressions: np.ndarray  # As an ad.
    clicks: np.ndarray
    conversions: np.ndarray
    value: np.ndarray  # Clicks times bids, which are the true values, currency.
    spend: np.ndarray  # Clicks times prices, currency.
    lost: Mapping[str, np.ndarray]  # Reason -> requests in which it was not shown.

    @property
    def surplus(self) -> np.ndarray:
        """Value less spend, currency."""
        return self.value - self.spend

    def by_spend(self) -> np.ndarray:
        """POIs that were for sale, those of the highest spend first, then of most requests."""
        order = np.lexsort((-self.requests, -self.spend))
        return order[self.requests[order] > 0]


def accounts(visits: Visits, num_pois: int) -> Accounts:
    """Adds up what each advertiser got, by the better judge.

    Args:
      visits: the sessions served.
      num_pois: P.
    """
    click, judge = np.asarray(visits.click[visits.judge], np.float64), visits.judge
    where = visits.is_ad & (visits.item >= 0)

    def of_slots(amount: np.ndarray) -> np.ndarray:
        return np.bincount(visits.item[where], amount[where], num_pois)

    def of_offers(amount: np.ndarray, among: np.ndarray) -> np.ndarray:
        return np.bincount(visits.ad[among], amount[among], num_pois)

    one, there = np.ones(visits.ad.shape), visits.ad >= 0
    requests = of_offers(one, there)
    return Accounts(
        requests=requests,
        bid=of_offers(visits.ad_bid, there) / np.maximum(requests, 1.0),
        impressions=of_slots(np.ones(click.shape)),
        clicks=of_slots(click),
        conversions=of_slots(click * visits.convert[judge]),
        value=of_slots(click * visits.bid),
        spend=of_slots(click * visits.price),
        lost={
            reason: of_offers(one, visits.fate == number)
            for number, reason in enumerate(FATES)
            if number != SHOWN
        },
    )
