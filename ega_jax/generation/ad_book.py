"""The ad book: the ads that may be shown in a region now, with their bids, as sorted arrays.

A book is the tree of its ads' semantic codes. A log has many books, and they form one forest, in
which each book is a root: a search in another book neither recompiles nor copies. The children of
a node are consecutive, so a search looks at the children of a node and never at all its ads.

Two bids are kept apart. `search_bid` decides which ad a node stands for and weighs tokens (21).
`bid` values slates and prices clicks. They are equal where the search follows live bids. In a
search without bids, a book in the order of live bids would leak them into the menu.

`inline_book` builds the small book of one request on device; `book_ledger.BookLedger` builds and
refreshes large ones on the host.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
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
class AdBook:
    """A forest of ad books; `n` ads, `V` nodes, of which those of depth 0 are the books.

    Ads are numbered as they are listed. Nodes are numbered by depth, and so that the children of a
    node follow each other. All capacities may exceed what is used: unused ads and nodes are in no
    range. After the nodes of a depth there is at least one unused node, which ends the last range.
    """

    poi: jax.Array  # [n] int32 POI of each ad.
    bid: jax.Array  # [n] float32 live bid, currency per click.
    search_bid: jax.Array  # [n] float32 bid that the search sees; -1 if the ad may not be shown.
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
    follows_bids: jax.Array  # [] bool, whether `search_bid` is the live bid.
    widths: tuple[int, ...] = struct.field(pytree_node=False)  # Most children of a node, by depth.

    @property
    def num_ads(self) -> int:
        """`n`, the capacity."""
        return self.poi.shape[0]

    @property
    def num_layers(self) -> int:
        """`C`."""
        return len(self.widths)

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

    def find_child(self, node: jax.Array, code: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Looks up the child of nodes `[M]` above the leaves by its code `[M]`.

        Returns:
          The place among the children that the code has or would have, `[M]` int32; and whether
          the child exists.
        """
        first, count = self.children(node)

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            below = (low < high) & (self.code[first + middle] < code)
            return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

        steps = max(*self.widths, 1).bit_length()
        place, _ = lax.fori_loop(0, steps, halve, (jnp.zeros_like(count), count))
        return place, (place < count) & (self.code[first + place] == code)

    def ads_of(self, poi: jax.Array, root: chex.Numeric) -> jax.Array:
        """The ad of each POI `[M]` in a book, int32; -1 if it has none."""
        start, end = self.book_start[root], self.book_start[root + 1]
        last = self.num_ads - 1

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            known = self.poi[self.by_poi[jnp.minimum(middle, last)]]
            below = (low < high) & (known < poi)
            return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

        bounds = jnp.full_like(poi, start), jnp.full_like(poi, end)
        place, _ = lax.fori_loop(0, self.num_ads.bit_length(), halve, bounds)
        ad = self.by_poi[jnp.minimum(place, last)]
        return jnp.where((place < end) & (poi >= 0) & (self.poi[ad] == poi), ad, -1)


def inline_book(
    codes: jax.Array,
    item: jax.Array,
    bid: jax.Array,
    where: jax.Array,
    *,
    eligible: jax.Array,
    follows_bids: chex.Numeric,
    num_listed: int,
    token_bid: str,
    scope: str,
    num_codes: int,
) -> AdBook:
    """Builds the book of one request's own list, on device; `vmap` it over requests.

    Args:
      codes: `[N, C]` int32 codes of the list's items.
      item: `[N]` int32 POIs; the list may hold organic items, which are no ads of the book.
      bid: `[N]` float32 live bids, currency per click.
      where: `[N]` bool, whether the entry is an ad.
      eligible: `[N]` bool, whether the ad may be shown.
      follows_bids: whether the search sees the live bids; otherwise it sees 0 for every ad.
      num_listed: `L`, static; at least the slots of a slate plus 1.
      token_bid: "max" or "mean", static.
      scope: "prefix" or "layer", static.
      num_codes: `W`, static.

    Returns:
      A forest of one book, whose ads have the numbers of their entries in the list.
    """
    search_bid = jnp.where(follows_bids, bid, 0.0).astype(jnp.float32)
    search_bid = jnp.where(where & eligible, search_bid, UNAVAILABLE)
    n, c = codes.shape
    end = where.sum(dtype=jnp.int32)
    node, start = jnp.zeros(n, jnp.int32), jnp.stack([jnp.int32(0), end])
    levels = []
    for d in range(c):
        level = _level(codes[:, d], search_bid, where, node, start, num_listed)
        node, start = level.node, level.start
        levels.append(level)
    by_poi = jnp.argsort(jnp.where(where, item, jnp.iinfo(jnp.int32).max), stable=True)
    offsets = 2 + (n + 1) * np.arange(c)  # The book and its end come first.
    return AdBook(
        poi=item,
        bid=jnp.where(where, bid, 0.0).astype(jnp.float32),
        search_bid=search_bid,
        leaf=jnp.where(where, node + int(offsets[-1]), -1),
        by_poi=by_poi.astype(jnp.int32),
        book_start=jnp.stack([jnp.int32(0), end]),
        layer=_layer_bids(codes, search_bid, num_codes) if scope == "layer" else None,
        follows_bids=jnp.asarray(follows_bids, bool),
        widths=(n,) * c,
        **_joined(levels, offsets, has_totals=token_bid == "mean" and scope == "prefix"),
    )


@struct.dataclass
class _Level:
    """The nodes of one depth above 0; names as in `AdBook`."""

    ranked: jax.Array  # [N] int32 ads by node of this depth, then by falling search bid.
    node: jax.Array  # [N] int32 node of each ad.
    start: jax.Array  # [N + 1] int32 node v holds `ranked[start[v]:start[v + 1]]`.
    first_child: jax.Array  # Of the nodes of the depth above.
    code: jax.Array  # [N]
    lists: jax.Array  # [N, L] int32 first ads of each node.
    best_bid: jax.Array  # [N]
    total: jax.Array  # [N, 2]


def _joined(levels: list[_Level], offsets: np.ndarray, has_totals: bool) -> dict[str, Any]:
    """The fields of `AdBook` by node, from the nodes of each depth above 0."""
    book, end = np.zeros(2), lambda x, fill: jnp.append(x, jnp.full((1, *x.shape[1:]), fill), 0)
    below = [level.first_child + int(o) for level, o in zip(levels, offsets, strict=True)]
    num_listed, num_inner = levels[0].lists.shape[1], int(offsets[-1])
    inner = [end(level.lists, -1).reshape(-1) for level in levels[:-1]]
    first = np.arange(num_inner, dtype=np.int32) * num_listed
    total = [np.zeros((2, 2), np.float32), *(end(level.total, 0) for level in levels)]
    return {
        "first_child": jnp.concatenate(below),
        "code": jnp.concatenate([book.astype(np.int32), *(end(x.code, 0) for x in levels)]),
        "best_bid": jnp.concatenate(
            [book + UNAVAILABLE, *(end(level.best_bid, UNAVAILABLE) for level in levels)]
        ).astype(jnp.float32),
        "listed": jnp.concatenate(
            [np.full(2 * num_listed, -1, np.int32), *inner, levels[-1].ranked]
        ),
        "list_start": jnp.append(first, num_inner * num_listed + levels[-1].start),
        "total": jnp.concatenate(total) if has_totals else None,
    }


def _level(code, search_bid, where, parent, parent_start, num_listed) -> _Level:
    """Splits the nodes of a depth by the codes `[N]` of their ads."""
    n, end = code.size, parent_start[-1]
    number = jnp.arange(n, dtype=jnp.int32)
    key = jnp.where(where, parent * (code.max() + 1) + code, jnp.iinfo(jnp.int32).max)
    key, _, ranked = lax.sort((key, -search_bid, number), num_keys=2, is_stable=True)
    is_start = (number < end) & jnp.append(True, key[1:] != key[:-1])
    sorted_node = jnp.cumsum(is_start, dtype=jnp.int32) - 1
    # Nodes of both depths are ranges of the same order, so a node's first child starts with it.
    first_child = sorted_node[jnp.minimum(parent_start, n - 1)]
    first_child = jnp.where(parent_start < end, first_child, is_start.sum(dtype=jnp.int32))
    start = jnp.nonzero(is_start, size=n, fill_value=n)[0].astype(jnp.int32)
    start = jnp.minimum(jnp.append(start, n), end)
    place = start[:-1, None] + jnp.arange(num_listed, dtype=jnp.int32)[None]
    there = place < start[1:, None]
    lists = jnp.where(there, ranked[jnp.minimum(place, n - 1)], -1)
    node = jnp.zeros(n, jnp.int32).at[ranked].set(sorted_node)
    return _Level(
        ranked=ranked,
        node=node,
        start=start,
        first_child=first_child,
        code=code[jnp.maximum(lists[:, 0], 0)].astype(jnp.int32),
        lists=lists,
        best_bid=jnp.where(there[:, 0], search_bid[lists[:, 0]], UNAVAILABLE),
        total=_totals(search_bid, node, where),
    )


def _totals(search_bid: jax.Array, node: jax.Array, where: jax.Array) -> jax.Array:
    """Sum and number of search bids of eligible ads by node, `[N, 2]`."""
    counted = where & (search_bid >= 0)
    each = jnp.stack([jnp.where(counted, search_bid, 0.0), counted.astype(jnp.float32)], axis=-1)
    return jnp.zeros((node.shape[0], 2)).at[node].add(each)


def _layer_bids(codes: jax.Array, search_bid: jax.Array, num_codes: int) -> LayerBids:
    """Bids by layer and code of one request's list, with a leading axis of one book."""
    number = jnp.arange(codes.shape[0], dtype=jnp.int32)
    counted = search_bid >= 0
    value = jnp.where(counted, search_bid, 0.0)

    def layer(code: jax.Array) -> LayerBids:
        empty = jnp.zeros(num_codes)
        best = empty.at[code].max(value)
        is_best = counted & (value == best[code])
        none = jnp.full(num_codes, codes.shape[0], jnp.int32)
        best_ad = none.at[code].min(jnp.where(is_best, number, codes.shape[0]))
        others = jnp.where(number == best_ad[code], 0.0, value)
        return LayerBids(
            best=best,
            best_ad=jnp.where(best_ad < codes.shape[0], best_ad, -1),
            second=empty.at[code].max(others),
            total=empty.at[code].add(value),
            count=empty.at[code].add(counted.astype(jnp.float32)),
        )

    found = jax.vmap(layer, in_axes=1)(codes)
    return jax.tree.map(lambda x: x[None], found)
