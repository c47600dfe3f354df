"""What may come next when a whole catalogue is searched for one item."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.generation.candidates import Options
from ega_jax.quantization.prefix_index import CatalogueIndex
from ega_jax.types import LARGEST, is_amount


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

    Raises:
      ValueError: names the first item whose bid is negative, NaN or beyond `LARGEST`.
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
