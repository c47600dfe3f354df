"""The oracle of the search in ad books: every beam looks at all items of a request's list.

It indexes one request's list of candidates and masks all rows of a node but those of the best
available items. It is slow and simple. An organic item whose POI is also an ad must be left out by
the caller: that rule differs.
"""

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.generation.slate_space import Options, Prefix


@struct.dataclass
class RequestIndex:
    """The tree over one request's candidates.

    Each depth has its own order: rows are sorted by the codes down to that depth, and by decreasing
    priority among equal codes. So each node is the same range of rows in every order of its own
    depth or deeper, and in order d the first row of a node of depth d + 1 is its item of highest
    priority. Any row of a node serves as the node's id.
    """

    order: jax.Array  # [C, N] int32 row -> candidate; masked candidates come last.
    row: jax.Array  # [C, N] int32 candidate -> row.
    code: jax.Array  # [C, N] int32 code of the row's item in layer d.
    low: jax.Array  # [C, N] int32 first row of the node of depth d + 1 that holds the row.
    end: jax.Array  # [C, N] int32 end (exclusive) of that node.
    num_items: jax.Array  # [] int32 number of candidates that are not masked.

    def span(self, depth: chex.Numeric, node: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Range `[low, high)` of the rows of nodes of one depth; `node` may have any shape."""
        low = jnp.where(depth > 0, self.low[depth - 1][node], 0)
        end = jnp.where(depth > 0, self.end[depth - 1][node], self.num_items)
        return jnp.where(node >= 0, low, 0), jnp.where(node >= 0, end, 0)


def request_index(
    codes: jax.Array, where: jax.Array, priority: jax.Array | None = None
) -> RequestIndex:
    """Builds the tree over one request's candidates, on device; `vmap` it over requests.

    Args:
      codes: [N, C] int32 codes of the candidates.
      where: [N] bool, whether the candidate exists.
      priority: [N] float32, orders items with equal codes, highest first; ties and the default
        follow the candidates' order.

    Returns:
      The index; its shapes depend only on `N` and `C`.
    """
    chex.assert_rank([codes, where], [2, 1])
    n, c = codes.shape
    priority = jnp.zeros(n) if priority is None else priority
    candidate = jnp.arange(n, dtype=jnp.int32)
    num_items = where.sum(dtype=jnp.int32)
    num_codes = codes.max() + 1
    prefix = jnp.zeros(n, jnp.int32)  # First row of the node that holds each candidate.
    depths = []
    for d in range(c):
        child = jnp.where(where, prefix * num_codes + codes[:, d], jnp.iinfo(jnp.int32).max)
        child, _, order = lax.sort((child, -priority, candidate), num_keys=2, is_stable=True)
        row = jnp.zeros(n, jnp.int32).at[order].set(candidate)
        low, end = _runs(child, num_items)
        depths.append((order, row, codes[order, d].astype(jnp.int32), low, end))
        prefix = low[row]
    order, row, code, low, end = map(jnp.stack, zip(*depths, strict=True))
    return RequestIndex(order=order, row=row, code=code, low=low, end=end, num_items=num_items)


def _runs(values: jax.Array, num_items: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Start and end `[N]` of the run of equal values that holds each row of sorted `values`.

    Each row from `num_items` on starts its own run.
    """
    row = jnp.arange(values.shape[0], dtype=jnp.int32)
    differs = jnp.concatenate([jnp.ones(1, bool), values[1:] != values[:-1]])
    is_start = differs | (row >= num_items)
    low = lax.cummax(jnp.where(is_start, row, 0))
    next_start = lax.cummin(jnp.where(is_start, row, num_items), reverse=True)
    return low, jnp.append(next_start[1:], num_items)


def code_bids(codes: jax.Array, bids: jax.Array, where: jax.Array, token_bid: str) -> jax.Array:
    """Token bids with scope "layer": one per code and layer, independent of the prefix.

    Args:
      codes: `[N, C]` int32 codes of a request's items.
      bids: `[N]` bids in currency per click, 0 for organic items.
      where: `[N]` bool, whether the item exists.
      token_bid: one of `TOKEN_BIDS`.

    Returns:
      `[C, N]` float32 bid of each item's code at each layer.
    """

    def layer(code: jax.Array) -> jax.Array:
        carries = (code[:, None] == code) & where
        carried = jnp.where(carries, bids, 0.0)
        if token_bid == "max":
            return carried.max(-1)
        return carried.sum(-1) / jnp.maximum(carries.sum(-1), 1)

    return jax.vmap(layer, in_axes=1)(codes)


def run_means(values: jax.Array, where: jax.Array, low: jax.Array) -> jax.Array:
    """Masked means over runs of consecutive rows, the nodes of a prefix index.

    Each run is summed on its own by a matrix product with zeros outside the run. Differences of
    cumulative sums would lose small bids that follow a large one to rounding.

    Args:
      values: `[N]` float32 by row, finite.
      where: `[S, N]` bool, the rows that count.
      low: `[N]` int32 first row of the run that holds each row.

    Returns:
      `[S, N]` float32 mean of the run that holds each row, 0 if no row of the run counts.
    """
    same = (low[:, None] == low).astype(jnp.float32)
    add_up = lambda x: jnp.matmul(x, same, precision="highest")
    counted = where.astype(jnp.float32)
    return add_up(counted * values) / jnp.maximum(add_up(counted), 1)


@struct.dataclass
class RequestCandidates:
    """The candidates of one request, indexed for a search under the rules of a slate.

    Each child of a prefix is represented by its best available item: the unused ad with the highest
    bid, else the next organic item. The representative's bid is the highest available bid in the
    child; at the last depth the representative is the item that the code selects. Rows of the
    index are sorted so that within a child ads come first, by decreasing bid.
    """

    index: RequestIndex
    is_ad: jax.Array  # [N] bool by candidate.
    bid: jax.Array  # [N] float32 by candidate, 0 for organic items.
    token_bid: jax.Array  # [C, N] float32 by row, the token bid if the row represents its child.
    organic: jax.Array  # [N + 1] int32 organic candidates in upstream order, padded with -1.
    num_ads: jax.Array  # [C, N] int32 by row, the number of ads in the child that holds the row.
    max_ads: jax.Array  # [] int32 maximum number of ads in a slate.
    min_gap: jax.Array  # [] int32 minimum number of organic items between two ads.
    prefix_means: bool = struct.field(pytree_node=False)  # Token bids are means; see `_mean_bids`.

    root = 0

    @property
    def widths(self):
        return (self.is_ad.shape[0],) * self.num_ads.shape[0]

    def options(self, depth, prefix: Prefix, width: int) -> Options:
        """Possible next codes, `F = N` at every depth; see `SlateSpace`."""
        node = jnp.where(prefix.live, prefix.node, -1)
        chosen = prefix.chosen
        # Each child is offered through the row of its representative. All other rows of the node
        # are masked, so no code is offered twice.
        row = self._all_rows()
        low, high = self.index.span(depth, node)
        within = (row >= low[:, None]) & (row < high[:, None])
        best = self._best_ads(depth, chosen) | (row == self._best_organic(depth, chosen)[:, None])
        bid = self._mean_bids(depth, chosen) if self.prefix_means else self.token_bid[depth]
        where = within & best
        return Options(
            node=jnp.where(where, row[None], -1),
            code=jnp.where(where, self.index.code[depth][None], 0),
            bid=jnp.broadcast_to(bid, within.shape),
            where=where,
        )

    def item(self, prefix: Prefix) -> jax.Array:
        """Candidate that a full code represents; see `SlateSpace`."""
        return jnp.where(prefix.node >= 0, self.index.order[-1][prefix.node], -1)

    def ids(self, chosen: jax.Array) -> jax.Array:
        """Candidates are numbered by the list everywhere."""
        return chosen

    def _all_rows(self) -> jax.Array:
        """All row numbers, `[N]` int32."""
        return jnp.arange(self.is_ad.shape[0], dtype=jnp.int32)

    def _ads(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """`[S, N]` bool by row: whether it is an ad that the beam may still use."""
        row = self._all_rows()
        is_taken = jnp.any(self._rows(depth, chosen)[:, :, None] == row, axis=1)
        is_ad = self.is_ad[self.index.order[depth]] & (row < self.index.num_items)
        return is_ad & ~is_taken & self._ads_allowed(chosen)[:, None]

    def _best_ads(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """`[S, N]` bool by row: whether it is its child's best ad that the beam may still use."""
        # A child's ads occupy rows from `low` on, by decreasing bid. The best unused ad is the one
        # for which all rows in [low, row) are taken.
        row, low = self._all_rows(), self.index.low[depth]
        taken = self._rows(depth, chosen)[:, :, None]
        above = jnp.sum((taken >= low) & (taken < row), axis=1)
        return self._ads(depth, chosen) & (above == row - low)

    def _next_organic(self, depth: chex.Numeric, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next organic candidate `[S]`, -1 if none is left, and its row."""
        # Organic items keep their order, so the number already shown indexes the next one. The
        # queue has N + 1 entries, so it ends in -1 even if all candidates are organic.
        shown = (chosen >= 0) & ~self.is_ad[chosen]
        candidate = self.organic[shown.sum(-1)]
        return candidate, self.index.row[depth][candidate]

    def _best_organic(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """Row `[S]` of the next organic item if its child has no usable ad, else -1."""
        # Two rows are in the same child if their children start at the same row. A child has
        # unused ads if fewer of its ads are taken than it holds.
        candidate, row = self._next_organic(depth, chosen)
        low = self.index.low[depth]
        taken = self._rows(depth, chosen)
        same = (taken >= 0) & self.is_ad[chosen] & (low[taken] == low[row][:, None])
        ads_left = self._ads_allowed(chosen) & (same.sum(-1) < self.num_ads[depth][row])
        return jnp.where((candidate >= 0) & ~ads_left, row, -1)

    def _mean_bids(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """`[S, N]` by row: the mean bid of the available items in the row's child."""
        candidate, row = self._next_organic(depth, chosen)
        is_next = self._all_rows() == jnp.where(candidate >= 0, row, -1)[:, None]
        bid = self.bid[self.index.order[depth]]
        available = self._ads(depth, chosen) | is_next
        return run_means(bid, available, self.index.low[depth])

    def _rows(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """Rows `[S, K]` of the chosen candidates, -1 for none."""
        return jnp.where(chosen >= 0, self.index.row[depth][chosen], -1)

    def _ads_allowed(self, chosen: jax.Array) -> jax.Array:
        """`[S]` bool, whether `max_ads` and `min_gap` permit an ad in the beam's next slot."""
        is_ad = (chosen >= 0) & self.is_ad[chosen]
        slot = jnp.arange(chosen.shape[1], dtype=jnp.int32)
        last = jnp.max(jnp.where(is_ad, slot, -1), axis=-1)
        gap = (chosen >= 0).sum(-1) - last - 1
        return (is_ad.sum(-1) < self.max_ads) & ((last < 0) | (gap >= self.min_gap))


def organic_queue(is_organic: jax.Array) -> jax.Array:
    """Organic candidates `[N]` int32 in upstream order, padded with -1, from a mask `[N]` bool."""
    order = jnp.argsort(~is_organic, stable=True).astype(jnp.int32)
    return jnp.where(is_organic[order], order, -1)


def request_candidates(
    codes: jax.Array,
    is_ad: jax.Array,
    bid: jax.Array,
    where: jax.Array,
    *,
    max_ads: chex.Numeric | None = None,
    min_gap: chex.Numeric = 0,
    token_bid: str = "max",
    scope: str = "prefix",
) -> RequestCandidates:
    """Indexes the candidates of one request on device; `vmap` it over requests.

    Args:
      codes: `[N, C]` int32 codes of the candidates.
      is_ad: `[N]` bool.
      bid: `[N]` float32 bids in currency per click, at least 0; ignored for organic items.
      where: `[N]` bool, whether the candidate exists and may be shown.
      max_ads: maximum number of ads in a slate; no limit by default.
      min_gap: minimum number of organic items between two ads.
      token_bid: "max" or "mean", how item bids are combined to a token's bid; static.
      scope: the items that count for a token's bid, static: with "prefix", those under the prefix
        decoded so far that the beam may still use; with "layer", all items with the code at that
        layer.

    Returns:
      The indexed candidates; shapes depend only on `N` and `C`.

    Raises:
      ValueError: `token_bid` or `scope` is not one of these choices.
    """
    n, c = codes.shape
    bid = jnp.where(is_ad, bid, 0.0).astype(jnp.float32)
    index = request_index(codes, where, priority=jnp.where(is_ad, bid, -1.0))
    # Number of ads in a child, per layer: ads before its end minus ads before its first row.
    ads_before = jnp.cumsum((is_ad & where)[index.order], axis=1, dtype=jnp.int32)
    ads_before = jnp.concatenate([jnp.zeros((c, 1), jnp.int32), ads_before], axis=1)
    num_ads = jnp.take_along_axis(ads_before, index.end, axis=1) - jnp.take_along_axis(
        ads_before, index.low, axis=1
    )
    by_candidate = (
        code_bids(codes, bid, where, token_bid)
        if scope == "layer"
        else jnp.broadcast_to(bid, (c, n))
    )
    return RequestCandidates(
        index=index,
        is_ad=is_ad,
        bid=bid,
        token_bid=jnp.take_along_axis(by_candidate, index.order, axis=1),
        organic=jnp.append(organic_queue(where & ~is_ad), -1),
        num_ads=num_ads,
        max_ads=jnp.asarray(n if max_ads is None else max_ads, jnp.int32),
        min_gap=jnp.asarray(min_gap, jnp.int32),
        prefix_means=scope == "prefix" and token_bid == "mean",
    )
