"""The possible next codes of a partial slate, with their token bids.

A search needs two functions: the codes that may follow a prefix, with their token bids, given the
items already in the beam (sec. 4.3.1), and the item that a full code represents. There are two
implementations. `RequestCandidates` handles up to a few thousand items under the slate rules: an
item is used once, organic items keep their upstream order.
`catalogue_candidates.CatalogueCandidates` handles millions of items but only slates of one item.
"""

from typing import Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.generation.bidding import SCOPES, TOKEN_BIDS, code_bids, run_means
from ega_jax.quantization.prefix_index import RequestIndex, request_index


@struct.dataclass
class Options:
    """The codes that may follow the prefixes of `S` beams, padded to `F` per beam."""

    node: jax.Array  # [S, F] int32 child node that the code leads to.
    code: jax.Array  # [S, F] int32.
    bid: jax.Array  # [S, F] float32 the token's bid, currency per click.
    where: jax.Array  # [S, F] bool, whether the entry is a valid option.


class Candidates(Protocol):
    """The candidates interface of the beam search."""

    def options(self, depth: int, node: jax.Array, chosen: jax.Array) -> Options:
        """Possible next codes at nodes `[S]` of a static depth, for beams with `chosen [S, K]`."""
        ...

    def item(self, leaf: jax.Array) -> jax.Array:
        """Items `[S]` int32 that the nodes `[S]` of depth `C` represent, -1 for node -1."""
        ...


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

    def options(self, depth: chex.Numeric, node: jax.Array, chosen: jax.Array) -> Options:
        """Possible next codes, `F = N` at every depth; see `Candidates`."""
        # Each child is offered through the row of its representative. All other rows of the node
        # are masked, so no code is offered twice.
        row = self._all_rows()
        low, high = self.index.span(depth, node)
        within = (row >= low[:, None]) & (row < high[:, None])
        best = self._best_ads(depth, chosen) | (row == self._best_organic(depth, chosen)[:, None])
        bid = self._mean_bids(depth, chosen) if self.prefix_means else self.token_bid[depth]
        return Options(
            node=jnp.broadcast_to(row, within.shape),
            code=jnp.broadcast_to(self.index.code[depth], within.shape),
            bid=jnp.broadcast_to(bid, within.shape),
            where=within & best,
        )

    def item(self, leaf: jax.Array) -> jax.Array:
        """Candidate that a node of depth `C` represents; see `Candidates`."""
        return jnp.where(leaf >= 0, self.index.order[-1][leaf], -1)

    def node(self, depth: int, items: jax.Array) -> jax.Array:
        """Nodes `[...]` int32 of a static depth that hold candidates `[...]`, -1 for none."""
        node = jnp.zeros_like(items) if depth == 0 else self.index.row[depth - 1][items]
        return jnp.where(items >= 0, node, -1)

    def codes(self, items: jax.Array) -> jax.Array:
        """Codes `[..., C]` of candidates `[...]`, 0 for none."""
        layers = zip(self.index.code, self.index.row, strict=True)
        codes = jnp.stack([code[row[items]] for code, row in layers], axis=-1)
        return jnp.where(items[..., None] >= 0, codes, 0)

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
    _check_choice("token_bid", token_bid, TOKEN_BIDS)
    _check_choice("scope", scope, SCOPES)
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


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` if a setting is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
