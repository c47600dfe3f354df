"""Sums of an ad book's search bids: by node for the mean of a token, by layer for its scope."""

import jax.numpy as jnp
import numpy as np

from ega_jax.generation.ad_book import LayerBids
from ega_jax.generation.book_lists import BookLists


def node_totals(lists: BookLists) -> np.ndarray:
    """Sum and number of search bids by node: `AdBook.total`. Sums are formed in float64."""
    tree, bid = lists.tree, lists.search_bid[lists.ranked]
    both = [np.where(bid >= 0, bid, 0.0).astype(np.float64), (bid >= 0).astype(np.float64)]
    totals = np.zeros((tree.code.size, 2), np.float32)
    for depth, start in enumerate(tree.starts()[1:], 1):
        for column, values in enumerate(both):
            totals[tree.nodes(depth), column] = np.add.reduceat(values, start[:-1])
    return totals


def layer_bids(lists: BookLists, num_codes: int) -> LayerBids:
    """Bids by book, layer and code, on device: `AdBook.layer`."""
    tree, ads = lists.tree, lists.ranked
    starts = tree.starts()
    books = starts[0].size - 1
    shown = lists.search_bid[ads] >= 0
    ads = ads[shown]
    book = np.repeat(np.arange(books, dtype=np.int32), np.diff(starts[0]))[shown]
    order = np.lexsort((ads, -lists.search_bid[ads]))
    ads = ads[order]
    layers = []
    for depth, start in enumerate(starts[1:], 1):
        code = np.repeat(tree.code[tree.nodes(depth)], np.diff(start))[shown]
        group = book * np.int64(num_codes) + code
        layers.append(_layer(lists.search_bid, ads, group[order], books * num_codes))
    fields = zip(*layers, strict=True)
    return LayerBids(*(jnp.stack([x.reshape(books, -1) for x in f], axis=1) for f in fields))


def _layer(
    search_bid: np.ndarray, ads: np.ndarray, group: np.ndarray, num_groups: int
) -> tuple[np.ndarray, ...]:
    """The fields of `LayerBids` for one layer, `[num_groups]` each.

    Args:
      search_bid: search bids of all ads.
      ads: `[m]` ads that may be shown, by falling search bid, then by number.
      group: `[m]` book and code of each.
      num_groups: books times `W`.
    """
    by_group = np.argsort(group, kind="stable")
    ads, group = ads[by_group], group[by_group]
    bid = search_bid[ads]
    start = np.searchsorted(group, np.arange(num_groups + 1))
    number = np.diff(start)
    first, second = start[:-1][number > 0], start[:-1][number > 1] + 1
    best, other = np.zeros((2, num_groups), np.float32)
    best_ad = np.full(num_groups, -1, np.int32)
    best[number > 0], best_ad[number > 0] = bid[first], ads[first]
    other[number > 1] = bid[second]
    total = np.bincount(group, bid, num_groups).astype(np.float32)
    return best, best_ad, other, total, number.astype(np.float32)
