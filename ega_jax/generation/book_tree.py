"""The tree of a forest of ad books: the part of `AdBook` that no bid changes.

It is built once on the host, by one sort of all ads by book and codes.
"""

import itertools

import numpy as np
from flax import struct

from ega_jax.errors import UserError


@struct.dataclass
class BookTree:
    """The fields of `AdBook` that do not depend on bids, on the host.

    Capacities are as in `AdBook`: the last entries may be unused.
    """

    poi: np.ndarray
    leaf: np.ndarray
    leaf_start: np.ndarray
    first_child: tuple[np.ndarray, ...]
    code: tuple[np.ndarray, ...]
    by_poi: np.ndarray
    book_start: np.ndarray
    widths: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def num_layers(self) -> int:
        """`C`."""
        return len(self.code)

    def num_nodes(self, depth: int) -> int:
        """The number of nodes of a depth above 0 that are used."""
        return int(self.first_child[depth - 1][-1])

    def parents(self, depth: int, nodes: np.ndarray) -> np.ndarray:
        """Parents, of a depth below `C`, of nodes `[m]` one level deeper."""
        return np.searchsorted(self.first_child[depth], nodes, side="right") - 1

    def starts(self) -> list[np.ndarray]:
        """Per depth from 0 to `C`, the first place in `ranked` of each node, then the end."""
        starts = [self.leaf_start]
        for first_child in self.first_child[::-1]:
            starts.append(starts[-1][first_child])
        return starts[::-1]


def capacity(used: int) -> int:
    """Rounds a size up to a multiple of an eighth of the next power of two.

    Examples:
      >>> [capacity(used) for used in (1, 7, 9, 100, 10_000_000)]
      [1, 7, 10, 112, 10485760]
    """
    step = max(1, (1 << (used - 1).bit_length()) // 8)
    return -(-used // step) * step


def padded(values: np.ndarray, size: int, fill: int | float) -> np.ndarray:
    """Returns `values` with `fill` appended along the first axis, up to `size` rows."""
    result = np.full((size, *values.shape[1:]), fill, values.dtype)
    result[: len(values)] = values
    return result


def build_tree(
    poi: np.ndarray, book_start: np.ndarray, poi_codes: np.ndarray, num_codes: int
) -> tuple[BookTree, np.ndarray]:
    """Builds the tree of all ads.

    Args:
      poi: `[n]` int32 POIs; those of a book are consecutive.
      book_start: `[books + 1]` int32 first ad of each book, then `n`.
      poi_codes: `[P, C]` codes of the POIs.
      num_codes: `W`.

    Returns:
      The tree, in NumPy, and the ads by leaf, then by number, `[capacity of n]` int32.

    Raises:
      UserError: a book lists a POI twice; names the first ad that repeats one.
    """
    books = np.repeat(np.arange(book_start.size - 1, dtype=np.int32), np.diff(book_start))
    by_poi = _by_poi(poi, books)
    codes = _narrow(poi_codes, num_codes)[:, poi]
    order = np.lexsort((*codes[::-1], _narrow(books, book_start.size))).astype(np.int32)
    starts, code = _nodes(codes, order, book_start)
    leaf = np.empty_like(order)
    leaf[order] = np.repeat(np.arange(code[-1].size, dtype=np.int32), np.diff(starts[-1]))
    children = [
        np.searchsorted(start[:-1], above).astype(np.int32)
        for above, start in itertools.pairwise(starts)
    ]
    size = capacity(poi.size)
    unused = np.arange(poi.size, size, dtype=np.int32)
    tree = BookTree(
        poi=padded(poi, size, -1),
        leaf=padded(leaf, size, -1),
        leaf_start=_padded_starts(starts[-1]),
        # The books are all used; only the nodes of the other depths are padded.
        first_child=(children[0], *map(_padded_starts, children[1:])),
        code=tuple(padded(c, capacity(c.size), 0) for c in code),
        by_poi=np.append(by_poi, unused),
        book_start=book_start,
        widths=tuple(1 << int(np.diff(c).max() - 1).bit_length() for c in children),
    )
    return tree, np.append(order, unused)


def _nodes(
    codes: np.ndarray, order: np.ndarray, book_start: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Finds the nodes among sorted ads.

    Args:
      codes: `[C, n]` codes of the ads.
      order: `[n]` int32 ads by book and codes.
      book_start: `[books + 1]` int32.

    Returns:
      By depth from 0 to C, the places in `order` where nodes start, then `n`: `[V_d + 1]` int32;
      and by depth from 1, the codes that lead to the nodes, `[V_d]`.
    """
    starts, code = [book_start], []
    is_start = np.zeros(order.size, bool)
    is_start[book_start[:-1][np.diff(book_start) > 0]] = True
    for layer in codes:
        ordered = layer[order]
        is_start[1:] |= ordered[1:] != ordered[:-1]
        start = np.flatnonzero(is_start).astype(np.int32)
        starts.append(np.append(start, np.int32(order.size)))
        code.append(ordered[start])
    return starts, code


def _padded_starts(start: np.ndarray) -> np.ndarray:
    """Repeats the end of ranges `[V + 1]` for nodes that are not used."""
    return padded(start, capacity(start.size - 1) + 1, start[-1])


def _narrow(values: np.ndarray, bound: int) -> np.ndarray:
    """Transposed integers below `bound` in 16 bits if they fit, which sort fastest."""
    return np.ascontiguousarray(values.T, np.int16 if bound <= 1 << 15 else np.int32)


def _by_poi(poi: np.ndarray, books: np.ndarray) -> np.ndarray:
    """Ads by book, then by POI, `[n]` int32."""
    key = books.astype(np.uint64) << np.uint64(32)
    key |= poi.astype(np.uint64)
    order = np.argsort(key, kind="stable").astype(np.int32)
    key = key[order]
    again = np.flatnonzero(key[1:] == key[:-1]) + 1
    if again.size:
        place = again[np.argmin(order[again])]
        ad, other = order[place], order[place - 1]
        raise UserError(f"book {books[ad]} lists POI {poi[ad]} twice: as ad {other} and as ad {ad}")
    return order
