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
    """The monopoly price of all others, for each of some falling bids.

    At a price above an ad's own bid, all that pay are others; at one below it, the ad is no payer.
    Of prices of equal revenue the highest counts, so that an own bid cannot choose.
    """
    place = np.arange(len(bid))
    above, below = (place + 1) * bid, place * bid  # Revenue at each bid as price.
    best_above = _running_argmax(above)
    best_below = len(bid) - 1 - _running_argmax(below[::-1], last=True)[::-1]
    before, after = np.append(0, best_above[:-1]), np.append(best_below[1:], len(bid) - 1)
    high = np.where(place > 0, above[before], 0.0)
    low = np.where(place < len(bid) - 1, below[after], 0.0)
    price = np.where(high >= low, bid[before], bid[after])
    return np.where(np.maximum(high, low) > 0, price, 0.0)


def _running_argmax(revenue: np.ndarray, last: bool = False) -> np.ndarray:
    """The place of the highest entry up to each; of equal ones the first, or the last."""
    highest = np.maximum.accumulate(revenue)
    is_best = revenue == highest if last else np.append(True, highest[1:] > highest[:-1])
    return np.maximum.accumulate(np.where(is_best, np.arange(len(revenue)), 0))
