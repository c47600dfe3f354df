"""What each item adds to the slate that wins (sec. 4.4.2, eq. 31)."""

from typing import Protocol

import chex
import jax
import jax.numpy as jnp

from ega_jax.auction.system import Levers, Menu, PreparedRequest
from ega_jax.generation.compaction import map_where


class MenuSearch(Protocol):
    """A system that searches a menu, with or without a candidate; `EGA` is one."""

    def find_menu(
        self,
        prepared: PreparedRequest,
        bid: jax.Array,
        levers: Levers,
        banned: chex.Numeric = -1,
    ) -> Menu:
        """See `EGA.find_menu`."""
        ...


def marginal_contributions(
    values: jax.Array, items: jax.Array, where: jax.Array, chosen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What each item adds to the chosen slate (31): `value(S*) - value(best slate without it)`.

    The best slate without an item is looked for among the beams. If all of them hold it, a second
    search without it has to tell.

    Args:
      values: `[S]` of the slates, in currency.
      items: `[S, K]` int32 candidates, -1 where a slot is empty.
      where: `[S]` bool, the beam holds a slate.
      chosen: `[]` int32 the slate that won.

    Returns:
      The contributions `[K]` float32 of the chosen slate's items, 0 where unknown or empty, and
      whether they are known, `[K]` bool.
    """
    chex.assert_rank([values, items, where], [1, 2, 1])
    item = items[chosen]
    lacks = where & ~jnp.any(items == item[:, None, None], axis=-1)  # [K, S]
    found = (item >= 0) & lacks.any(-1)
    without = jnp.max(jnp.where(lacks, values, -jnp.inf), axis=-1)
    return jnp.where(found, values[chosen] - jnp.where(found, without, 0.0), 0.0), found


def contributions(
    system: MenuSearch, prepared: PreparedRequest, bid: jax.Array, levers: Levers
) -> tuple[jax.Array, jax.Array]:
    """The slates that win and what each of their items adds (31), for a batch of requests.

    The best slate without an item is looked for in the menu; the search runs again only for
    those items that are in all of its slates.

    Args:
      system: what searches.
      prepared: the requests, from a `vmap` of `prepare`.
      bid: `[B, N]` float32 currency per click.
      levers: run-time settings.

    Returns:
      The slates' candidates `[B, K]`, -1 where empty, and contributions `[B, K]` in currency.
    """
    menu = jax.vmap(lambda prepared, b: system.find_menu(prepared, b, levers))(prepared, bid)
    best = jnp.argmax(menu.value, axis=-1)
    known, found = jax.vmap(marginal_contributions)(menu.value, menu.candidate, menu.where, best)
    candidate = jnp.take_along_axis(menu.candidate, best[:, None, None], axis=1)[:, 0]
    batch, slots = candidate.shape

    def value_without(rows: jax.Array) -> jax.Array:
        request, slot = rows // slots, rows % slots
        searched = jax.tree.map(lambda x: x[request], prepared)
        again = lambda prepared, b, out: system.find_menu(prepared, b, levers, out).value.max()
        return jax.vmap(again)(searched, bid[request], candidate[request, slot])

    missing = (candidate >= 0) & ~found
    searched = map_where(value_without, missing.reshape(-1), chunk=batch).reshape(batch, slots)
    return candidate, jnp.where(missing, menu.value.max(-1)[:, None] - searched, known)
