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

    Capacities are as in `AdBook`: the last ads, and the last nodes of a depth, may be unused.
    """

    poi: np.ndarray
    leaf: np.ndarray
    first_child: np.ndarray
    code: np.ndarray
    list_start: np.ndarray
    by_poi: np.ndarray
    book_start: np.ndarray
    widths: tuple[int, ...] = struct.field(pytree_node=False)
    largest: int = struct.field(pytree_node=False)
    first_node: tuple[int, ...] = struct.field(pytree_node=False)  # By depth, 0 to C; then `V`.
    num_nodes: tuple[int, ...] = struct.field(pytree_node=False)  # Used nodes by depth.
    num_listed: int = struct.field(pytree_node=False)  # `L`.

    @property
    def num_layers(self) -> int:
        """`C`."""
        return len(self.widths)

    @property
    def first_place(self) -> int:
        """The place in `listed` at which the ads of the leaves start."""
        return self.first_node[-2] * self.num_listed

    def nodes(self, depth: int) -> slice:
        """The used nodes of a depth."""
        first = self.first_node[depth]
        return slice(first, first + self.num_nodes[depth])

    def parents(self, nodes: np.ndarray) -> np.ndarray:
        """Parents of nodes `[m]` of a depth above 0, int32."""
        parents = np.searchsorted(self.first_child, nodes, side="right") - 1
        # With another type than its own, the next search would copy all of `first_child`.
        return parents.astype(np.int32)

    def starts(self) -> list[np.ndarray]:
        """Per depth from 0 to C, where the ads of each used node start among the leaves' ads.

        Each array ends with the number of ads.
        """
        used = [self.nodes(depth) for depth in range(self.num_layers + 1)]
        ends = [slice(nodes.start, nodes.stop + 1) for nodes in used]
        starts = [self.list_start[ends[-1]] - self.first_place]
        for nodes, below in zip(ends[-2::-1], self.first_node[-2:0:-1], strict=True):
            starts.append(starts[-1][self.first_child[nodes] - below])
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
    poi: np.ndarray,
    book_start: np.ndarray,
    poi_codes: np.ndarray,
    num_codes: int,
    num_listed: int,
) -> tuple[BookTree, np.ndarray]:
    """Builds the tree of all ads.

    Args:
      poi: `[n]` int32 POIs; those of a book are consecutive.
      book_start: `[books + 1]` int32 first ad of each book, then `n`.
      poi_codes: `[P, C]` codes of the POIs.
      num_codes: `W`.
      num_listed: `L`.

    Returns:
      The tree, in NumPy, and the ads by leaf, then by number, `[n]` int32.

    Raises:
      UserError: a book lists a POI twice; names the first ad that repeats one. Or the lists have
        more entries than int32 can count.
    """
    books = np.repeat(np.arange(book_start.size - 1, dtype=np.int32), np.diff(book_start))
    by_poi = _by_poi(poi, books)
    codes = _narrow(poi_codes, num_codes)[:, poi]
    order = np.lexsort((*codes[::-1], _narrow(books, book_start.size))).astype(np.int32)
    starts, code = _nodes(codes, order, book_start)
    num_nodes = tuple(start.size - 1 for start in starts)
    first_node = _first_nodes(num_nodes)
    leaf = np.empty_like(order)
    leaf[order] = np.repeat(np.arange(num_nodes[-1], dtype=np.int32), np.diff(starts[-1]))
    leaf += first_node[-2]
    first_child = _first_children(starts, first_node)
    size = capacity(poi.size)
    tree = BookTree(
        poi=padded(poi, size, -1),
        leaf=padded(leaf, size, -1),
        first_child=first_child,
        code=_by_node(code, first_node),
        list_start=_list_starts(starts[-1], first_node, num_listed),
        by_poi=np.append(by_poi, np.arange(poi.size, size, dtype=np.int32)),
        book_start=book_start,
        widths=tuple(
            1 << int(np.diff(first_child[first:end]).max() - 1).bit_length()
            for first, end in itertools.pairwise(first_node[:-1])
        ),
        largest=capacity(int(np.diff(book_start).max())),
        first_node=first_node,
        num_nodes=num_nodes,
        num_listed=num_listed,
    )
    return tree, order


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


def _first_nodes(num_nodes: tuple[int, ...]) -> tuple[int, ...]:
    """The first node of each depth from 0 to C, then `V`, given the numbers of used nodes."""
    # The books are all used; each depth has one more node, which ends its last range.
    sizes = num_nodes[0] + 1, *(capacity(number) + 1 for number in num_nodes[1:])
    return 0, *itertools.accumulate(sizes)


def _first_children(starts: list[np.ndarray], first_node: tuple[int, ...]) -> np.ndarray:
    """`AdBook.first_child`; it rises to the end of a depth's nodes, and on to the next depth's."""
    result = np.empty(first_node[-2], np.int32)
    for depth, (above, start) in enumerate(itertools.pairwise(starts)):
        first, below = first_node[depth : depth + 2]
        # Nodes of both depths are ranges of the same order, so a node's first child starts with it.
        result[first : first + above.size] = below + np.searchsorted(start[:-1], above)
        result[first + above.size : below] = below + start.size - 1
    return result


def _by_node(code: list[np.ndarray], first_node: tuple[int, ...]) -> np.ndarray:
    """`AdBook.code`, given the codes of the used nodes by depth from 1."""
    result = np.zeros(first_node[-1], code[0].dtype)
    for first, codes in zip(first_node[1:-1], code, strict=True):
        result[first : first + codes.size] = codes
    return result


def _list_starts(start: np.ndarray, first_node: tuple[int, ...], num_listed: int) -> np.ndarray:
    """`AdBook.list_start`, given where the leaves start among their ads, and the number of ads."""
    num_inner, end = first_node[-2:]
    first_place = num_inner * num_listed
    if (entries := first_place + capacity(int(start[-1]))) > np.iinfo(np.int32).max:
        raise UserError(f"the book's lists have {entries} entries, more than int32 can count")
    result = np.full(end, first_place + start[-1], np.int32)
    result[:num_inner] = np.arange(0, first_place, num_listed)
    result[num_inner : num_inner + start.size] = first_place + start
    return result


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
