"""What may come next in a slate: the children of a prefix, and what they are worth.

A search asks its candidates two things: which codes may follow a prefix given the items the
beam already holds, with the bid each code carries (sec. 4.3.1), and which item a full code
stands for. Two answers exist. `RequestCandidates` knows a few thousand items and obeys the
rules of a slate: an item is used once, organic items keep their upstream order. A
`CatalogueCandidates` knows millions of items and finds a single one.
"""

from typing import Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.quantization.prefix_index import CatalogueIndex, RequestIndex, request_index


@struct.dataclass
class Options:
    """The codes that may follow the prefixes of `S` beams, `F` places for each."""

    node: jax.Array  # [S, F] int32 node that the code leads to.
    code: jax.Array  # [S, F] int32.
    bid: jax.Array  # [S, F] float32 the token's bid: the highest among its available items.
    where: jax.Array  # [S, F] bool.


class Candidates(Protocol):
    """What the beam search asks of candidates."""

    def options(self, depth: int, node: jax.Array, chosen: jax.Array) -> Options:
        """Codes that may follow nodes `[S]` of a static depth for beams holding `chosen [S, K]`."""
        ...

    def item(self, leaf: jax.Array) -> jax.Array:
        """Item `[S]` int32 that the last chosen nodes `[S]` stand for, -1 for no node."""
        ...


@struct.dataclass
class RequestCandidates:
    """The candidates of one request, indexed for a search under the rules of a slate.

    A child of a prefix is represented by its best available item: the highest-bidding ad not
    yet in the slate, else the next organic item. That item's bid is the token's bid, and at the
    last depth it is the item the code stands for. Rows of the index are sorted so that within
    a child ads come first, by falling bid.
    """

    index: RequestIndex
    is_ad: jax.Array  # [N] bool by candidate.
    bid: jax.Array  # [N] float32 by candidate, 0 for organic items.
    organic: jax.Array  # [N + 1] int32 candidates in upstream order, -1 after the last.
    num_ads: jax.Array  # [C, N] int32 by row, the ads in the child that holds the row.
    max_ads: jax.Array  # [] int32 most ads in a slate.
    min_gap: jax.Array  # [] int32 fewest organic items between two ads.

    def options(self, depth: int, node: jax.Array, chosen: jax.Array) -> Options:
        """Codes that may follow, `F = N`; see `Candidates`."""
        order = self.index.order[depth]
        row = jnp.arange(order.shape[0], dtype=jnp.int32)
        low, high = self.index.span(depth, node)
        within = (row >= low[:, None]) & (row < high[:, None])
        best = self._best_ads(depth, chosen) | (row == self._best_organic(depth, chosen)[:, None])
        return Options(
            node=jnp.broadcast_to(row, within.shape),
            code=jnp.broadcast_to(self.index.code[depth], within.shape),
            bid=jnp.broadcast_to(self.bid[order], within.shape),
            where=within & best,
        )

    def item(self, leaf: jax.Array) -> jax.Array:
        """Candidate that a node of depth `C` stands for; see `Candidates`."""
        return jnp.where(leaf >= 0, self.index.order[-1][leaf], -1)

    def _best_ads(self, depth: int, chosen: jax.Array) -> jax.Array:
        """`[S, N]` bool by row: the highest-bidding ad of its child that a beam may still use."""
        row = jnp.arange(self.is_ad.shape[0], dtype=jnp.int32)
        low = self.index.low[depth]
        taken = self._rows(depth, chosen)[:, :, None]
        above = jnp.sum((taken >= low) & (taken < row), axis=1)
        is_taken = jnp.any(taken == row, axis=1)
        is_ad = self.is_ad[self.index.order[depth]] & (row < self.index.num_items)
        return is_ad & ~is_taken & (above == row - low) & self._ads_allowed(chosen)[:, None]

    def _best_organic(self, depth: int, chosen: jax.Array) -> jax.Array:
        """Row `[S]` of the next organic item where no ad of its child goes before it, else -1."""
        shown = (chosen >= 0) & ~self.is_ad[chosen]
        candidate = self.organic[shown.sum(-1)]
        row = self.index.row[depth][candidate]
        low = self.index.low[depth]
        taken = self._rows(depth, chosen)
        same = (taken >= 0) & self.is_ad[chosen] & (low[taken] == low[row][:, None])
        ads_left = self._ads_allowed(chosen) & (same.sum(-1) < self.num_ads[depth][row])
        return jnp.where((candidate >= 0) & ~ads_left, row, -1)

    def _rows(self, depth: int, chosen: jax.Array) -> jax.Array:
        """Rows `[S, K]` of the chosen candidates, -1 where none."""
        return jnp.where(chosen >= 0, self.index.row[depth][chosen], -1)

    def _ads_allowed(self, chosen: jax.Array) -> jax.Array:
        """`[S]` bool, the limits let a beam take an ad in its next slot."""
        is_ad = (chosen >= 0) & self.is_ad[chosen]
        slot = jnp.arange(chosen.shape[1], dtype=jnp.int32)
        last = jnp.max(jnp.where(is_ad, slot, -1), axis=-1)
        gap = (chosen >= 0).sum(-1) - last - 1
        return (is_ad.sum(-1) < self.max_ads) & ((last < 0) | (gap >= self.min_gap))


def request_candidates(
    codes: jax.Array,
    is_ad: jax.Array,
    bid: jax.Array,
    where: jax.Array,
    *,
    max_ads: chex.Numeric | None = None,
    min_gap: chex.Numeric = 0,
) -> RequestCandidates:
    """Indexes the candidates of one request on device; `vmap` it over requests.

    Args:
      codes: `[N, C]` int32 codes of the candidates.
      is_ad: `[N]` bool.
      bid: `[N]` float32 bids in currency per click, at least 0; ignored for organic items.
      where: `[N]` bool, the candidate exists and may be shown.
      max_ads: most ads in one slate; no limit by default.
      min_gap: fewest organic items between two ads.

    Returns:
      The indexed candidates; shapes depend on `N` and `C` only.
    """
    n, c = codes.shape
    bid = jnp.where(is_ad, bid, 0.0).astype(jnp.float32)
    index = request_index(codes, where, priority=jnp.where(is_ad, bid, -1.0))
    ads_before = jnp.cumsum((is_ad & where)[index.order], axis=1, dtype=jnp.int32)
    ads_before = jnp.concatenate([jnp.zeros((c, 1), jnp.int32), ads_before], axis=1)
    num_ads = jnp.take_along_axis(ads_before, index.end, axis=1) - jnp.take_along_axis(
        ads_before, index.low, axis=1
    )
    is_organic = where & ~is_ad
    (organic,) = jnp.nonzero(is_organic, size=n + 1, fill_value=-1)
    return RequestCandidates(
        index=index,
        is_ad=is_ad,
        bid=bid,
        organic=organic.astype(jnp.int32),
        num_ads=num_ads,
        max_ads=jnp.asarray(n if max_ads is None else max_ads, jnp.int32),
        min_gap=jnp.asarray(min_gap, jnp.int32),
    )


@struct.dataclass
class CatalogueCandidates:
    """A whole catalogue, searched for one item; bids and availability are per-node maxima."""

    index: CatalogueIndex
    node_bid: tuple[jax.Array, ...]  # C of [nodes of depth 1..C] float32, -1 if none available.
    leaf_item: jax.Array  # [leaves] int32 highest-bidding available item of a full code.

    def options(self, depth: int, node: jax.Array, chosen: jax.Array) -> Options:
        """Codes that may follow; see `Candidates` and `CatalogueIndex.expand` for `F`.

        Raises:
          ValueError: for slates of more than one item: maxima over a whole catalogue do not
            know which items a beam has used.
        """
        if chosen.shape[1] != 1:
            raise ValueError(
                f"a catalogue is searched for 1 item, not for slates of {chosen.shape[1]}: "
                "give the candidates of the request instead"
            )
        children = self.index.expand(depth, node)
        bid = self.node_bid[depth][children.node]
        return Options(
            node=children.node,
            code=children.code,
            bid=jnp.maximum(bid, 0.0),
            where=children.where & (bid >= 0),
        )

    def item(self, leaf: jax.Array) -> jax.Array:
        """Item that a node of depth `C` stands for; see `Candidates`."""
        return jnp.where(leaf >= 0, self.leaf_item[leaf], -1)


def catalogue_candidates(
    index: CatalogueIndex, bid: np.ndarray | None = None, available: np.ndarray | None = None
) -> CatalogueCandidates:
    """Prepares a catalogue for search, on the host; do it again when bids change.

    Args:
      index: the prefix index of the catalogue.
      bid: `[P]` bids in currency per click, at least 0; 0 by default.
      available: `[P]` bool, items that may be found; all by default.

    Returns:
      The candidates; shapes depend on the index only, so that new bids do not recompile.
    """
    order = np.asarray(index.order)
    value = np.zeros(order.size, np.float32) if bid is None else np.asarray(bid, np.float32)[order]
    if available is not None:
        value = np.where(np.asarray(available)[order], value, np.float32(-1.0))
    starts = [np.asarray(bounds)[:-1] for bounds in index.bounds[1:]]
    node_bid = [np.maximum.reduceat(value, start) for start in starts]
    is_best = value == np.repeat(node_bid[-1], np.diff(np.asarray(index.bounds[-1])))
    best = np.flatnonzero(is_best)
    first = best[np.searchsorted(best, starts[-1])]
    return CatalogueCandidates(
        index=index,
        node_bid=tuple(jnp.asarray(b) for b in node_bid),
        leaf_item=jnp.asarray(order[first]),
    )
