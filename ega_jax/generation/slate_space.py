"""The interface between a beam search and the slates of a request that are possible."""

from typing import Protocol

import chex
import jax
from flax import struct


@struct.dataclass
class Options:
    """The codes that may follow the prefixes of `S` beams, padded to `F` per beam."""

    node: jax.Array  # [S, F] int32 child node that the code leads to, -1 outside of the book.
    code: jax.Array  # [S, F] int32.
    bid: jax.Array  # [S, F] float32 the token's bid, currency per click.
    where: jax.Array  # [S, F] bool, whether the entry is a valid option.


@struct.dataclass
class Prefix:
    """`S` partial slates, and the codes of their current slot so far."""

    node: jax.Array  # [S] int32 node of the current slot's codes, -1 outside of the book.
    codes: jax.Array  # [S, C] int32 codes of the current slot; undefined from the depth on.
    chosen: jax.Array  # [S, K] int32 items of the slots before, -1 in slots without item.
    nodes: jax.Array  # [S, K, C] int32 nodes of depths 1 to C on the way to each of them.
    live: jax.Array  # [S] bool, whether the slate has not ended.


class SlateSpace(Protocol):
    """What a beam search needs to know about the slates of one request."""

    @property
    def root(self) -> jax.Array:
        """The node of depth 0, `[]` int32."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """The most children of a node, by depth."""
        ...

    def options(self, depth: chex.Numeric, prefix: Prefix, width: int) -> Options:
        """Possible next codes of prefixes of some depth, whose nodes have `width` children at most.

        There are `F = width + 1` of them.
        """
        ...

    def item(self, prefix: Prefix) -> jax.Array:
        """Items `[S]` int32 that full codes represent, as `chosen` holds them; -1 for none."""
        ...

    def ids(self, chosen: jax.Array) -> jax.Array:
        """Candidates `[...]` of the request, from items as `chosen` holds them."""
        ...
