"""Computing only the rows that are needed, with static shapes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def map_where(function: Callable[[jax.Array], Any], where: jax.Array, chunk: int) -> Any:
    """Applies a function to the rows that are wanted, a chunk at a time.

    The number of chunks follows from the data, so that the cost does too. Not differentiable in
    reverse.

    Args:
      function: `rows [chunk] int32 -> pytree of [chunk, ...]`, each row on its own.
      where: `[R]` bool, the rows that are wanted.
      chunk: static.

    Returns:
      A pytree of `[R, ...]`, 0 in the rows that are not wanted.
    """
    num_rows = where.shape[0]
    count = where.sum()
    wanted = jnp.nonzero(where, size=num_rows + chunk, fill_value=num_rows)[0].astype(jnp.int32)
    shapes = jax.eval_shape(function, wanted[:chunk])
    start = jax.tree.map(lambda s: jnp.zeros((num_rows, *s.shape[1:]), s.dtype), shapes)

    def step(state):
        done, results = state
        rows = lax.dynamic_slice(wanted, (done,), (chunk,))
        new = function(jnp.minimum(rows, num_rows - 1))
        write = lambda into, x: into.at[rows].set(x, mode="drop")
        return done + chunk, jax.tree.map(write, results, new)

    _, results = lax.while_loop(lambda state: state[0] < count, step, (jnp.int32(0), start))
    return results
