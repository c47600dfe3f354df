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
class AdBook:
    """A forest of ad books; `n` ads, `V_d` nodes of depth d, of which depth 0 are the books.

    Ads are numbered as they are listed. All capacities may exceed what is used: unused ads and
    nodes are in no range.
    """

    poi: jax.Array  # [n] int32 POI of each ad.
    bid: jax.Array  # [n] float32 live bid, currency per click.
    search_bid: jax.Array  # [n] float32 bid that the search sees; -1 if the ad may not be shown.
    leaf: jax.Array  # [n] int32 node of depth C that holds the ad, -1 if the entry is no ad.
    ranked: jax.Array  # [n] int32 ads by leaf, then by falling search bid, then by number.
    leaf_start: jax.Array  # [V_C + 1] int32 leaf v holds `ranked[leaf_start[v]:leaf_start[v + 1]]`.
    # Per depth d in 0..C-1; node v has the children `first_child[d][v]` to `first_child[d][v + 1]`.
    first_child: tuple[jax.Array, ...]  # [V_d + 1] int32.
    code: tuple[jax.Array, ...]  # [V_(d+1)] int16 or int32 code that leads to the child.
    best_bid: tuple[jax.Array, ...]  # [V_(d+1)] float32 highest search bid below, or -1.
    best: tuple[jax.Array, ...]  # Without leaves: [V_(d+1), L] int32 first ads by bid, or -1.
    by_poi: jax.Array  # [n] int32 ads by book, then by POI.
    book_start: jax.Array  # [V_0 + 1] int32 book v has `by_poi[book_start[v]:book_start[v + 1]]`.
    total: tuple[jax.Array, ...] | None  # [V_(d+1), 2] sum and number of search bids; for means.
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
        return len(self.code)

    @property
    def num_listed(self) -> int:
        """`L`, the number of ads in the lists of `best`."""
        return self.best[0].shape[1] if self.best else 1

    def path(self, ad: jax.Array) -> jax.Array:
        """Nodes `[..., C]` int32 of depths 1 to C that hold ads `[...]`; -1 for what is no ad."""
        node = jnp.where((ad >= 0) & (ad < self.num_ads), self.leaf[ad], -1)
        nodes = [node]
        for first_child in self.first_child[:0:-1]:
            parent = jnp.searchsorted(first_child, node, side="right").astype(jnp.int32) - 1
            node = jnp.where(node >= 0, parent, -1)
            nodes.append(node)
        return jnp.stack(nodes[::-1], axis=-1)

    def children(self, depth: int, node: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First child and number of children, both int32, of nodes of a static depth; -1: none."""
        first = jnp.where(node >= 0, self.first_child[depth][node], 0)
        end = jnp.where(node >= 0, self.first_child[depth][node + 1], 0)
        return first, end - first

    def listed(self, depth: int, node: jax.Array, number: int) -> jax.Array:
        """First ads by search bid of nodes `[...]` of a static depth above 0: `[..., number]`.

        Entries are -1 after the last ad and for node -1. Above the leaves, `number` is at most
        `num_listed`.
        """
        there = (node >= 0)[..., None]
        if depth < self.num_layers:
            return jnp.where(there, self.best[depth - 1][node, :number], -1)
        offset = jnp.arange(number, dtype=jnp.int32).reshape(*(1,) * node.ndim, number)
        place = self.leaf_start[node][..., None] + offset
        there &= place < self.leaf_start[node + 1][..., None]
        return jnp.where(there, self.ranked[jnp.where(there, place, 0)], -1)

    def find_child(
        self, depth: int, node: jax.Array, code: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Looks up the child of nodes `[M]` of a static depth by its code `[M]`.

        Returns:
          The place among the children that the code has or would have, `[M]` int32; and whether
          the child exists.
        """
        first, count = self.children(depth, node)
        codes, last = self.code[depth], self.code[depth].shape[0] - 1

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            below = (low < high) & (codes[jnp.minimum(first + middle, last)] < code)
            return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

        steps = max(self.widths[depth], 1).bit_length()
        place, _ = lax.fori_loop(0, steps, halve, (jnp.zeros_like(count), count))
        exists = (place < count) & (codes[jnp.minimum(first + place, last)] == code)
        return place, exists

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
    has_totals = token_bid == "mean" and scope == "prefix"
    totals = (_totals(search_bid, level.node, where) for level in levels)
    return AdBook(
        poi=item,
        bid=jnp.where(where, bid, 0.0).astype(jnp.float32),
        search_bid=search_bid,
        leaf=jnp.where(where, node, -1),
        ranked=levels[-1].ranked,
        leaf_start=start,
        first_child=tuple(level.first_child for level in levels),
        code=tuple(level.code for level in levels),
        best_bid=tuple(level.best_bid for level in levels),
        best=tuple(level.best for level in levels[:-1]),
        by_poi=by_poi.astype(jnp.int32),
        book_start=jnp.stack([jnp.int32(0), end]),
        total=tuple(totals) if has_totals else None,
        layer=_layer_bids(codes, search_bid, num_codes) if scope == "layer" else None,
        follows_bids=jnp.asarray(follows_bids, bool),
        widths=(n,) * c,
    )


@struct.dataclass
class _Level:
    """The nodes of one depth above 0; names as in `AdBook`."""

    ranked: jax.Array  # [N] int32 ads by node of this depth, then by falling search bid.
    node: jax.Array  # [N] int32 node of each ad.
    start: jax.Array  # [N + 1] int32 node v holds `ranked[start[v]:start[v + 1]]`.
    first_child: jax.Array  # Of the nodes of the depth above.
    code: jax.Array  # [N]
    best: jax.Array  # [N, L]
    best_bid: jax.Array  # [N]


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
    best = jnp.where(there, ranked[jnp.minimum(place, n - 1)], -1)
    return _Level(
        ranked=ranked,
        node=jnp.zeros(n, jnp.int32).at[ranked].set(sorted_node),
        start=start,
        first_child=first_child,
        code=code[jnp.maximum(best[:, 0], 0)].astype(jnp.int32),
        best=best,
        best_bid=jnp.where(there[:, 0], search_bid[best[:, 0]], UNAVAILABLE),
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
