"""The ads of each node by falling search bid: the part of `AdBook` that bids change.

All arrays are on the host. Lists above the leaves are short, so a change of few bids is merged into
the lists that hold or gain a changed ad. Only a full list that an ad may have left is read again
from the children of its node.
"""

import dataclasses

import numpy as np

from ega_jax.generation.ad_book import UNAVAILABLE
from ega_jax.generation.book_tree import BookTree

CHANGED, FELL = 1, 2  # Marks of ads whose search bid rose, and of those whose search bid fell.


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a change of search bids may have touched; nothing appears twice."""

    places: np.ndarray  # Places in `listed`.
    nodes: np.ndarray  # Nodes whose first ads may differ.


class BookLists:
    """Search bids, and the first ads of all nodes; all of a leaf."""

    def __init__(self, tree: BookTree, order: np.ndarray, search_bid: np.ndarray):
        """Orders all ads.

        Args:
          tree: the tree, with NumPy arrays; must not change.
          order: `[n]` int32 ads by leaf.
          search_bid: `[n]` float32 search bids, -1 for ads that may not be shown.
        """
        self.tree = tree
        size, first = tree.poi.size, tree.first_place
        self.search_bid = np.full(size, UNAVAILABLE, np.float32)
        self.listed = np.full(first + size, -1, np.int32)
        self.ranked = self.listed[first : first + order.size]  # A view: ads by leaf.
        self.ranked[:] = order
        self._lists = self.listed[:first].reshape(-1, tree.num_listed)  # A view of the other nodes.
        self.reset(search_bid)

    def reset(self, search_bid: np.ndarray) -> None:
        """Replaces all search bids, `[n]` float32."""
        self.search_bid[: search_bid.size] = search_bid
        self._order_leaves(_all(self.tree.nodes(self.tree.num_layers)))
        for depth in range(self.tree.num_layers - 1, 0, -1):
            nodes = self.tree.nodes(depth)
            group, ads = self._listed_below(_all(nodes))
            self._lists[nodes] = self._first(group, ads, nodes.stop - nodes.start)

    def change(self, ads: np.ndarray, search_bid: np.ndarray) -> Changes:
        """Changes some search bids.

        Args:
          ads: `[m]` int32, no ad twice.
          search_bid: `[m]` float32.
        """
        before = self.search_bid[ads]
        differs = before != search_bid
        ads, before, search_bid = ads[differs], before[differs], search_bid[differs]
        mark = np.zeros(self.search_bid.size, np.int8)
        mark[ads] = np.where(search_bid < before, FELL, CHANGED)
        self.search_bid[ads] = search_bid
        ads = ads[np.argsort(self.tree.leaf[ads])]  # So nodes of all depths rise.
        node = self.tree.leaf[ads]
        leaves = _runs(node)[0]
        places, inner = self._order_leaves(leaves), []
        for _ in range(self.tree.num_layers - 1):
            node = self.tree.parents(node)
            touched, kept = self._update_lists(ads, node, mark)
            inner.append(touched)
            ads, node = ads[kept], node[kept]
        above = np.concatenate([*inner, leaves[:0]])
        offset = np.arange(self.tree.num_listed, dtype=np.int32)
        lists = self.tree.list_start[above][:, None] + offset
        return Changes(
            places=np.concatenate([lists.ravel(), places]), nodes=np.concatenate([above, leaves])
        )

    def highest(self, nodes: np.ndarray | slice) -> np.ndarray:
        """Highest search bids of used nodes that are no books, float32; -1: no ad may be shown."""
        return self.search_bid[self.listed[self.tree.list_start[nodes]]]

    def all_highest(self) -> np.ndarray:
        """`AdBook.best_bid`."""
        result = np.full(self.tree.list_start.size, UNAVAILABLE, np.float32)
        for depth in range(1, self.tree.num_layers + 1):
            nodes = self.tree.nodes(depth)
            result[nodes] = self.highest(nodes)
        return result

    def _order_leaves(self, leaves: np.ndarray) -> np.ndarray:
        """Sorts the ads of leaves; returns the places in `listed` of leaves with several ads."""
        start = self.tree.list_start[leaves]
        count = self.tree.list_start[leaves + 1] - start
        several = count > 1
        group, place = ragged(start[several], count[several])
        ads = self.listed[place]
        self.listed[place] = ads[self._order(group, ads)]
        return place

    def _update_lists(
        self, ads: np.ndarray, node: np.ndarray, mark: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Updates the lists of a depth, after those of the depth below.

        Args:
          ads: `[m]` changed ads that were or are in the list of a child, by node.
          node: `[m]` nodes of the depth that hold them, rising.
          mark: `[capacity]` `FELL`, `CHANGED` or 0 for each ad.

        Returns:
          The nodes whose lists may have changed, and which changed ads were or are in them, `[m]`
          bool. The lists above do not depend on the others.
        """
        nodes, group = _runs(node)
        old = self._lists[nodes]
        marks = np.where(old >= 0, mark[old], 0)
        # A list that is not full holds all ads, and an ad whose bid rose does not leave its list.
        lost = (old[:, -1] >= 0) & (marks == FELL).any(axis=1)
        stays = (old >= 0) & (marks == 0) & ~lost[:, None]
        merged = ~lost[group]
        again, below = self._listed_below(nodes[lost])
        groups = np.nonzero(stays)[0], group[merged], np.flatnonzero(lost)[again]
        group = np.concatenate(groups, dtype=np.int32)
        by_group = np.argsort(group, kind="stable")  # Merges three runs, in linear time.
        entries = np.concatenate([old[stays], ads[merged], below])
        new = self._first(group[by_group], entries[by_group], nodes.size)
        self._lists[nodes] = new
        listed = np.zeros(mark.size, bool)
        listed[old[marks > 0]] = True
        listed[new[new >= 0]] = True
        return nodes, listed[ads]

    def _listed_below(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First ads of all children of nodes `[v]`: positions in `nodes`, rising, and the ads."""
        first_child = self.tree.first_child[nodes]
        group, child = ragged(first_child, self.tree.first_child[nodes + 1] - first_child)
        start = self.tree.list_start[child]
        count = np.minimum(self.tree.list_start[child + 1] - start, self.tree.num_listed)
        owner, place = ragged(start, count)
        ads = self.listed[place]
        there = ads >= 0
        return group[owner[there]], ads[there]

    def _first(self, group: np.ndarray, ads: np.ndarray, num_groups: int) -> np.ndarray:
        """The first `L` ads of each group, rising, by falling search bid: `[num_groups, L]`."""
        ads = ads[self._order(group, ads)]
        start = np.searchsorted(group, np.arange(num_groups, dtype=np.int32)).astype(np.int32)
        rank = np.arange(ads.size, dtype=np.int32) - start[group]
        listed = rank < self.tree.num_listed
        lists = np.full((num_groups, self.tree.num_listed), -1, np.int32)
        lists[group[listed], rank[listed]] = ads[listed]
        return lists

    def _order(self, group: np.ndarray, ads: np.ndarray) -> np.ndarray:
        """The permutation that sorts entries, which are by group, also by falling bid, then ad."""
        by_ad = np.argsort(_joined(group, ads.astype(np.uint32)), kind="stable")
        # The bits of a float that is at least 0 rise with it; those of -1 are a negative integer.
        bits = self.search_bid[ads[by_ad]].view(np.uint32)
        falling = np.uint32(np.iinfo(np.int32).max) - bits
        return by_ad[np.argsort(_joined(group, falling), kind="stable")]


def ragged(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists the ranges `[start, start + count)`: the number of each entry's range, and the entry.

    Examples:
      >>> [x.tolist() for x in ragged(np.array([5, 0]), np.array([2, 1]))]
      [[0, 0, 1], [5, 6, 0]]
    """
    end = np.cumsum(count, dtype=np.int32)
    entry = np.arange(end[-1] if end.size else 0, dtype=np.int32)
    entry += np.repeat((start - end + count).astype(np.int32), count)
    return np.repeat(np.arange(count.size, dtype=np.int32), count), entry


def _all(nodes: slice) -> np.ndarray:
    """The nodes of a depth, int32."""
    return np.arange(nodes.start, nodes.stop, dtype=np.int32)


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of a rising array `[m]`, and which of them each entry is, `[m]` int32."""
    differs = np.ones(values.size, bool)
    differs[1:] = values[1:] != values[:-1]
    return values[differs], np.cumsum(differs, dtype=np.int32) - 1


def _joined(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Pairs of uint32 as one key each; a stable sort is fastest where `high` is sorted."""
    key = high.astype(np.uint64)
    key <<= np.uint64(32)
    key |= low
    return key
