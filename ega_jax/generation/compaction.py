"""Evaluation of a function on needed or distinct rows only, with static shapes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def fold_where(
    function: Callable[[jax.Array, Any], Any], where: jax.Array, chunk: int, state: Any
) -> Any:
    """Updates a state with the selected rows, one chunk at a time.

    The number of chunks, and so the cost, depends on the number of selected rows. The function
    does not support reverse-mode differentiation.

    Args:
      function: `(rows [chunk] int32, state) -> state`; rows from `R` on are padding, to be clipped
        when read and dropped when written.
      where: `[R]` bool, the selected rows.
      chunk: rows per call, static; `R` if there are fewer.
      state: a pytree.

    Returns:
      The last state.
    """
    num_rows, count = where.shape[0], where.sum()
    # XLA drops all writes of several rows into one: a chunk may not exceed the rows.
    chunk = min(chunk, num_rows)
    wanted = jnp.nonzero(where, size=num_rows + chunk, fill_value=num_rows)[0].astype(jnp.int32)

    def step(carry):
        done, state = carry
        return done + chunk, function(lax.dynamic_slice(wanted, (done,), (chunk,)), state)

    return lax.while_loop(lambda carry: carry[0] < count, step, (jnp.int32(0), state))[1]


def map_where(function: Callable[[jax.Array], Any], where: jax.Array, chunk: int) -> Any:
    """Applies a function to selected rows, one chunk at a time; see `fold_where`.

    Args:
      function: `rows [chunk] int32 -> pytree of [chunk, ...]`, computed row by row.
      where: `[R]` bool, the selected rows.
      chunk: rows per call, static.

    Returns:
      A pytree of `[R, ...]`, 0 in rows that are not selected.
    """
    num_rows = where.shape[0]
    shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((chunk,), jnp.int32))
    start = jax.tree.map(lambda s: jnp.zeros((num_rows, *s.shape[1:]), s.dtype), shapes)

    def step(rows: jax.Array, results: Any) -> Any:
        new = function(jnp.minimum(rows, num_rows - 1))
        return jax.tree.map(lambda into, x: into.at[rows].set(x, mode="drop"), results, new)

    return fold_where(step, where, chunk, start)


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
