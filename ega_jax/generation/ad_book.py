"""The ad book: the ads that may be shown in a region now, with their bids, as sorted arrays.

A book is the tree of its ads' semantic codes. A log has many books, and they form one forest, in
which each book is a root: a search in another book neither recompiles nor copies. The children of
a node are consecutive, so a search looks at the children of a node and never at all its ads.

Two bids are kept apart. `search_bid` decides which ad a node stands for and weighs tokens (21).
`bid` values slates and prices clicks. They are equal without smoothing, unless ads have a `Worth`
for this request. In a search without bids, a book in the order of live bids would leak them into
the menu. An ad that bids less than its own reserve may not be shown.

`inline_book` builds the small book of one request on device; `book_ledger.BookLedger` builds and
refreshes large ones on the host.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

UNAVAILABLE = -1.0  # The search bid of an ad that may not be shown, and of a node without ads.


@struct.dataclass
class LayerBids:
    """Bids of all ads of a book with the same code in the same layer, for the scope "layer"."""

    best: jax.Array  # [roots, C, W] float32 highest search bid, 0 if there is no ad.
    best_ad: jax.Array  # [roots, C, W] int32 the ad that bids it, -1 if there is none.
    second: jax.Array  # [roots, C, W] float32 highest search bid of another ad, 0 if none.
    total: jax.Array  # [roots, C, W] float32 sum of search bids.
    count: jax.Array  # [roots, C, W] float32 number of ads.


@struct.dataclass
class Worth:
    """What the search sees in place of bids: `rate * (bid + kappa)`."""

    rate: jax.Array  # [n] float32, at least 0.
    kappa: jax.Array  # [] float32 value of a click beside its bid, in currency.

    def of(self, bid: jax.Array, ad: jax.Array | slice = slice(None)) -> jax.Array:
        """Search bids of ads that bid so much."""
        return self.rate[ad] * (bid + self.kappa)


def smoothed(live: jax.Array, given: jax.Array, smoothing: chex.Numeric) -> jax.Array:
    """Search bids `live^(1 - smoothing) * given^smoothing`; with 0 and 1 exactly one of the two."""
    weight = jnp.asarray(smoothing, jnp.float32)
    mixed = jnp.maximum(live, 0.0) ** (1 - weight) * jnp.maximum(given, 0.0) ** weight
    return jnp.select([weight == 0, weight == 1], [live, given], mixed)


@struct.dataclass
class AdBook:
    """A forest of ad books; `n` ads, `V` nodes, of which those of depth 0 are the books.

    Ads are numbered as they are listed. Nodes are numbered by depth, and so that the children of a
    node follow each other. All capacities may exceed what is used: unused ads and nodes are in no
    range. After the nodes of a depth there is at least one unused node, which ends the last range.
    """

    poi: jax.Array  # [n] int32 POI of each ad.
    bid: jax.Array  # [n] float32 live bid, currency per click.
    search_bid: jax.Array  # [n] float32 bid that the search sees; -1 if the ad may not be shown.
    given_bid: jax.Array  # [n] float32 past bid, or its worth, of an ad, shown or not.
    reserve: jax.Array  # [n] float32 least bid and price of the ad, currency per click.
    leaf: jax.Array  # [n] int32 node of depth C that holds the ad, -1 if the entry is no ad.
    # Nodes above the leaves: v has the children `first_child[v]` to `first_child[v + 1]`.
    first_child: jax.Array  # [nodes above the leaves] int32.
    code: jax.Array  # [V] int16 or int32 code that leads to the node.
    best_bid: jax.Array  # [V] float32 highest search bid below the node, or -1.
    # First ads of each node by falling search bid, then by number: all of a leaf, else `L`.
    listed: jax.Array  # int32; v has `listed[list_start[v]:list_start[v + 1]]`, padded with -1.
    list_start: jax.Array  # [V] int32.
    by_poi: jax.Array  # [n] int32 ads by book, then by POI.
    book_start: jax.Array  # [books + 1] int32 v has `by_poi[book_start[v]:book_start[v + 1]]`.
    total: jax.Array | None  # [V, 2] float32 sum and number of the search bids below; for means.
    layer: LayerBids | None  # For the scope "layer".
    smoothing: jax.Array  # [] float32 from 0 to 1, weight of `given_bid` in the search bid.
    widths: tuple[int, ...] = struct.field(pytree_node=False)  # Most children of a node, by depth.
    largest: int = struct.field(pytree_node=False)  # A book has at most so many ads.
    worth: Worth | None = None  # What the search sees in place of bids; None: the bids.

    @property
    def num_ads(self) -> int:
        """`n`, the capacity."""
        return self.poi.shape[0]

    @property
    def num_layers(self) -> int:
        """`C`."""
        return len(self.widths)

    def seen(self, bid: jax.Array, ad: jax.Array) -> jax.Array:
        """What the search sees of ads that bid so much."""
        live = bid if self.worth is None else self.worth.of(bid, ad)
        return smoothed(live, self.given_bid[ad], self.smoothing)

    def path(self, ad: jax.Array) -> jax.Array:
        """Nodes `[..., C]` int32 of depths 1 to C that hold ads `[...]`; -1 for what is no ad."""
        node = jnp.where((ad >= 0) & (ad < self.num_ads), self.leaf[ad], -1)
        nodes = [node]
        for _ in self.widths[1:]:
            parent = jnp.searchsorted(self.first_child, node, side="right").astype(jnp.int32) - 1
            node = jnp.where(node >= 0, parent, -1)
            nodes.append(node)
        return jnp.stack(nodes[::-1], axis=-1)

    def children(self, node: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First child and number of children, both int32, of nodes above the leaves; -1: none."""
        first, end = self.first_child[node], self.first_child[node + 1]
        there = node >= 0
        return jnp.where(there, first, 0), jnp.where(there, end - first, 0)

    def first_ads(self, node: jax.Array, number: int) -> jax.Array:
        """First ads by search bid below nodes `[...]` that are no books: `[..., number]`.

        Entries are -1 after the last ad and for node -1. Above the leaves, there are `L` at most.
        """
        offset = jnp.arange(number, dtype=jnp.int32).reshape(*(1,) * node.ndim, number)
        place = self.list_start[node][..., None] + offset
        there = (node >= 0)[..., None] & (place < self.list_start[node + 1][..., None])
        return jnp.where(there, self.listed[jnp.where(there, place, 0)], -1)

    def eligible_ads(self, leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The ads of leaves `[S]` that may be shown: first place in `listed` and number, int32.

        The number is 0 for leaf -1.
        """
        start, end = self.list_start[leaf], self.list_start[leaf + 1]
        # Ads of a leaf stand by falling search bid, so those that may not be shown come last.
        is_eligible = lambda place: self.search_bid[self.listed[place]] >= 0
        first_left_out = _lower_bound(is_eligible, start, end, self.largest)
        return start, jnp.where(leaf >= 0, first_left_out - start, 0)

    def find_child(self, node: jax.Array, code: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Looks up the child of nodes `[M]` above the leaves by its code `[M]`.

        Returns:
          The place among the children that the code has or would have, `[M]` int32; and whether
          the child exists.
        """
        first, count = self.children(node)
        is_below = lambda place: self.code[first + place] < code
        place = _lower_bound(is_below, jnp.zeros_like(count), count, max(*self.widths, 1))
        return place, (place < count) & (self.code[first + place] == code)

    def ads_of(self, poi: jax.Array, root: chex.Numeric) -> jax.Array:
        """The ad of each POI `[M]` in a book, int32; -1 if it has none."""
        start, end = self.book_start[root], self.book_start[root + 1]
        ad_at = lambda place: self.by_poi[jnp.minimum(place, self.num_ads - 1)]
        is_below = lambda place: self.poi[ad_at(place)] < poi
        bounds = jnp.full_like(poi, start), jnp.full_like(poi, end)
        place = _lower_bound(is_below, *bounds, self.num_ads)
        ad = ad_at(place)
        return jnp.where((place < end) & (poi >= 0) & (self.poi[ad] == poi), ad, -1)


def _lower_bound(
    is_below: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array, most: int
) -> jax.Array:
    """First places `[M]` in sorted ranges `[low, high)` of `most` entries whose entry is not below.

    Args:
      is_below: whether the entries at places `[M]` are below what is searched.
      low: `[M]` int32 starts of the ranges.
      high: `[M]` int32 ends, the result if all entries are below.
      most: the most entries of a range, static.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        goes_on = (low < high) & is_below(middle)
        return jnp.where(goes_on, middle + 1, low), jnp.where(goes_on, high, middle)

    return lax.fori_loop(0, most.bit_length(), halve, (low, high))[0]
