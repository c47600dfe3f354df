"""The tree of a catalogue's semantic codes as sorted integer arrays.

When items are sorted by their codes, items with a common prefix are adjacent. A node of the tree is
then a contiguous range of sorted items, and its children and valid codes follow from gathers and
comparisons with static shapes (secs. 4.1.2 and 4.3.1). It serves training and reports; the search
uses the tree of an ad book (`generation.ad_book`).

The root has depth 0 and node id 0; an item's full code has depth `C`. Node `-1` means no node: it
has no children and an empty span. The children of a node are padded to `F` entries.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

DENSE_DEPTHS = 2
DENSE_ENTRIES = 1 << 22


@struct.dataclass
class Children:
    """The children of `S` nodes."""

    node: jax.Array  # [S, F] int32 node id one level deeper, -1 at padding.
    code: jax.Array  # [S, F] int32 the code that leads to the child; undefined at padding.
    where: jax.Array  # [S, F] bool, whether the entry is a child.


@struct.dataclass
class DenseLevel:
    """Children as a table over all codes: cheap near the root, where nodes are few and full."""

    table: jax.Array  # [nodes, W] int32 child reached by a code, -1 for none.

    def expand(self, node: jax.Array) -> Children:
        """Children of `node` [S], with `F = W`."""
        child = jnp.where(node[:, None] >= 0, self.table[node], -1)
        code = jnp.arange(self.table.shape[1], dtype=jnp.int32)
        return Children(node=child, code=jnp.broadcast_to(code, child.shape), where=child >= 0)


@struct.dataclass
class SparseLevel:
    """Children as ranges of consecutive node ids: small for many nodes with few children."""

    first_child: jax.Array  # [nodes + 1] int32 id of each node's first child.
    code: jax.Array  # [nodes of the next level] int16 or int32, the code that leads to the node.
    max_children: int = struct.field(pytree_node=False)

    def expand(self, node: jax.Array) -> Children:
        """Children of `node` [S], with `F = max_children`."""
        place = jnp.arange(self.max_children, dtype=jnp.int32)[None]
        child = self.first_child[node][:, None] + place
        where = (node[:, None] >= 0) & (child < self.first_child[node + 1][:, None])
        code = self.code[jnp.where(where, child, 0)].astype(jnp.int32)
        return Children(node=jnp.where(where, child, -1), code=code, where=where)


@struct.dataclass
class CatalogueIndex:
    """The tree over a whole catalogue; the nodes of a depth are numbered in sorted order."""

    order: jax.Array  # [n] int32 sorted position -> item id.
    bounds: tuple[jax.Array, ...]  # C + 1 arrays [nodes + 1] int32: a node starts at bounds[node].
    levels: tuple[DenseLevel | SparseLevel, ...]  # C levels: from the nodes of a depth to the next.

    @property
    def num_items(self) -> int:
        """The number of items."""
        return self.order.shape[0]

    def expand(self, depth: int, node: jax.Array) -> Children:
        """Children of nodes.

        Args:
          depth: depth of the nodes, static, below `C`.
          node: [S] int32 node ids of that depth.

        Returns:
          The children, with `F = W` near the root; deeper, `F` is the largest number of children
          of any node of that depth.
        """
        return self.levels[depth].expand(node)

    def span(self, depth: int, node: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Range `[low, high)` in `order` of nodes of a static depth; `node` may have any shape."""
        bounds = self.bounds[depth]
        low, high = bounds[node], bounds[node + 1]
        return jnp.where(node >= 0, low, 0), jnp.where(node >= 0, high, 0)

    def nodes(self) -> np.ndarray:
        """The node that holds each item, `[C, n]` int32 for depths 0 to C - 1; on the host."""
        depths = [np.diff(np.asarray(bounds)) for bounds in self.bounds[:-1]]
        nodes = np.empty((len(depths), self.num_items), np.int32)
        for row, sizes in zip(nodes, depths, strict=True):
            row[np.asarray(self.order)] = np.repeat(np.arange(sizes.size, dtype=np.int32), sizes)
        return nodes


def catalogue_index(codes: np.ndarray, num_codes: int) -> CatalogueIndex:
    """Builds the tree over a catalogue, on the host.

    Args:
      codes: [n, C] integer codes of the items.
      num_codes: `W`, codes per layer.

    Returns:
      The index: about 11 bytes per item with 3 codes if most codes are in use.

    Raises:
      ValueError: there is no item, or a code is outside `[0, W)`; names the first such item.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f"codes must be a non-empty [items, layers] array, found {codes.shape}")
    if codes.min() < 0 or codes.max() >= num_codes:
        item = int(np.argmax(((codes < 0) | (codes >= num_codes)).any(axis=1)))
        raise ValueError(f"codes of item {item} are {codes[item]}, outside [0, {num_codes})")
    narrow = codes.T.astype(np.int16 if num_codes <= 1 << 15 else np.int32)
    order = np.lexsort(narrow[::-1]).astype(np.int32)
    ordered = narrow[:, order]
    starts = _node_starts(ordered)
    levels = [_level(ordered, starts, depth, num_codes) for depth in range(len(ordered))]
    bounds = [jnp.asarray(np.append(s, order.size), jnp.int32) for s in starts]
    return CatalogueIndex(order=jnp.asarray(order), bounds=tuple(bounds), levels=tuple(levels))


def _node_starts(ordered: np.ndarray) -> list[np.ndarray]:
    """Start positions [nodes] int32, in sorted order, of the nodes of each depth 0..C."""
    is_start = np.zeros(ordered.shape[1], bool)
    is_start[0] = True
    starts = [np.zeros(1, np.int32)]
    for column in ordered:
        is_start[1:] |= column[1:] != column[:-1]
        starts.append(np.flatnonzero(is_start).astype(np.int32))
    return starts


def _level(
    ordered: np.ndarray, starts: Sequence[np.ndarray], depth: int, num_codes: int
) -> DenseLevel | SparseLevel:
    """Links the nodes of `depth` to those of `depth + 1`."""
    parents, children = starts[depth], starts[depth + 1]
    code = ordered[depth, children]
    first_child = np.append(np.searchsorted(children, parents), children.size).astype(np.int32)
    counts = np.diff(first_child)
    if depth < DENSE_DEPTHS and parents.size * num_codes <= DENSE_ENTRIES:
        table = np.full((parents.size, num_codes), -1, np.int32)
        table[np.repeat(np.arange(parents.size), counts), code] = np.arange(children.size)
        return DenseLevel(table=jnp.asarray(table))
    return SparseLevel(
        first_child=jnp.asarray(first_child),
        code=jnp.asarray(code),
        max_children=int(counts.max()),
    )


def size_in_bytes(index: CatalogueIndex) -> int:
    """The memory that an index uses, in bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(index))
