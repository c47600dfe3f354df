"""Candidates for searching a whole catalogue for one item."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.generation.candidates import Options
from ega_jax.quantization.prefix_index import CatalogueIndex
from ega_jax.types import LARGEST, is_amount


@struct.dataclass
class CatalogueCandidates:
    """A whole catalogue as candidates for one slot; a node's bid is the maximum over its items."""

    index: CatalogueIndex
    node_bid: tuple[jax.Array, ...]  # C arrays [nodes of depth 1..C] float32, -1: none available.
    leaf_item: jax.Array  # [leaves] int32 available item with the highest bid of each full code.

    def options(self, depth: int, node: jax.Array, chosen: jax.Array) -> Options:
        """Possible next codes; see `Candidates`, and `CatalogueIndex.expand` for `F`.

        Raises:
          ValueError: slates have more than one slot. Per-node maxima cannot exclude the items that
            a beam has already used.
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
        """Item that a node of depth `C` represents; see `Candidates`."""
        return jnp.where(leaf >= 0, self.leaf_item[leaf], -1)


def catalogue_candidates(
    index: CatalogueIndex, bid: np.ndarray | None = None, available: np.ndarray | None = None
) -> CatalogueCandidates:
    """Prepares a catalogue for search, on the host; repeat it when bids change.

    Args:
      index: the prefix index of the catalogue.
      bid: `[P]` bids in currency per click, at least 0; 0 by default.
      available: `[P]` bool, whether the search may return the item; all by default.

    Returns:
      The candidates; shapes depend only on the index, so new bids do not recompile.

    Raises:
      ValueError: a bid is negative, NaN or above `LARGEST`; names the first such item.
    """
    order = np.asarray(index.order)
    bids = np.zeros(order.size) if bid is None else np.asarray(bid)
    if not (valid := is_amount(bids)).all():
        item = int(np.argmin(valid))
        raise ValueError(f"item {item}: {bids[item]} is not a bid from 0 to {LARGEST:g}")
    value = bids.astype(np.float32)[order]
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
