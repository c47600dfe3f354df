"""Reserve prices of ads from the past bids of their competitors."""

import numpy as np

NO_RESERVES, MONOPOLY = RESERVES = "none", "monopoly"


def monopoly_prices(bid: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The price of highest revenue from the other ads of a group, for each ad.

    It is the reserve of Myerson ("Optimal Auction Design", 1981) for the empirical distribution of
    bids: of the others' bids, the one whose product with the number of others that bid at least as
    much is largest. An ad's own bid has no effect on it.

    Args:
      bid: `[n]` past bids, currency per click, at least 0.
      group: `[n]` int, such as the category of each ad; ads of one group compete.

    Returns:
      `[n]` float32 currency per click; 0 for an ad that is alone in its group.
    """
    order = np.lexsort((-bid, group))
    starts = np.flatnonzero(np.diff(group[order])) + 1
    price = np.empty(bid.shape, np.float32)
    price[order] = np.concatenate([_of_others(each) for each in np.split(bid[order], starts)])
    return price


def _of_others(bid: np.ndarray) -> np.ndarray:
    """The monopoly price of all others, for each of some falling bids."""
    place = np.arange(len(bid))
    num_paying = place + 1 - (place > place[:, None])  # [ad, price] of the others.
    revenue = np.where(place == place[:, None], 0.0, num_paying * bid)
    best = revenue.argmax(axis=1)
    return np.where(revenue[place, best] > 0, bid[best], 0.0)
