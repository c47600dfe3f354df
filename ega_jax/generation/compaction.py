"""Evaluation of a function on needed or distinct rows only, with static shapes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def map_where(function: Callable[[jax.Array], Any], where: jax.Array, chunk: int) -> Any:
    """Applies a function to selected rows, one chunk at a time.

    The number of chunks, and so the cost, depends on the number of selected rows. The function
    does not support reverse-mode differentiation.

    Args:
      function: `rows [chunk] int32 -> pytree of [chunk, ...]`, computed row by row.
      where: `[R]` bool, the selected rows.
      chunk: rows per call, static.

    Returns:
      A pytree of `[R, ...]`, 0 in rows that are not selected.
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


def first_equal(rows: jax.Array) -> jax.Array:
    """The index `[R]` int32 of the first row equal to each row of `rows [R, L]` int."""
    number = jnp.arange(rows.shape[0], dtype=jnp.int32)
    *columns, order = lax.sort((*rows.T, number), num_keys=rows.shape[1], is_stable=True)
    differs = [column[1:] != column[:-1] for column in columns]
    starts = jnp.concatenate([jnp.ones(1, bool), jnp.stack(differs).any(0)])
    first = order[lax.cummax(jnp.where(starts, number, 0))]
    return jnp.zeros_like(number).at[order].set(first)


def map_distinct(
    function: Callable[[jax.Array], Any], rows: jax.Array, where: jax.Array, chunk: int
) -> Any:
    """Applies a function of `rows [R, L]` once per distinct selected row; see `map_where`.

    Args:
      function: `indices [chunk] int32 -> pytree of [chunk, ...]`; the result for an index may
        depend only on that row of `rows`.
      rows: `[R, L]` int.
      where: `[R]` bool, the selected rows.
      chunk: rows per call, static.

    Returns:
      A pytree of `[R, ...]`; rows that are not selected are undefined.
    """
    rows = jnp.where(where[:, None], rows, jnp.iinfo(rows.dtype).min)
    first = first_equal(rows)
    wanted = where & (first == jnp.arange(rows.shape[0]))
    found = map_where(function, wanted, chunk)
    return jax.tree.map(lambda x: x[first], found)
