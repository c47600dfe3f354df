"""The options of a beam as columns: the children of its node, and the next organic item."""

import jax
import jax.numpy as jnp
from flax import struct

_NO_COLUMN = 2**30


@struct.dataclass
class Siblings:
    """The children of `S` nodes, and the place of the next organic item among them.

    Options are columns in rising order of codes. An organic item whose code no child has is
    inserted, so later children shift by one column.
    """

    first: jax.Array  # [S] int32 first child.
    count: jax.Array  # [S] int32 number of children.
    place: jax.Array  # [S] int32 column of the organic item, -1 if it does not follow the prefix.
    is_inserted: jax.Array  # [S] bool, whether no child has its code.
    code: jax.Array  # [S] int32 its code.

    def is_child(self, column: jax.Array) -> jax.Array:
        """Whether columns `[S, F]` hold a child."""
        number = column - self._is_shifted(column)
        is_organic = self.is_inserted[:, None] & (column == self.place[:, None])
        return (number >= 0) & (number < self.count[:, None]) & ~is_organic

    def child(self, column: jax.Array) -> jax.Array:
        """Nodes `[S, F]` of columns, 0 where there is no child."""
        child = self.first[:, None] + column - self._is_shifted(column)
        return jnp.where(self.is_child(column), child, 0)

    def column(self, node: jax.Array) -> jax.Array:
        """Columns `[S, V]` of nodes; far out of range if the node is no child."""
        number = node - self.first[:, None]
        is_child = (node >= 0) & (number >= 0) & (number < self.count[:, None])
        column = number + (self.is_inserted[:, None] & (number >= self.place[:, None]))
        return jnp.where(is_child, column, _NO_COLUMN)

    def _is_shifted(self, column: jax.Array) -> jax.Array:
        return self.is_inserted[:, None] & (column > self.place[:, None])
