"""Marginal contributions of the items of the winning slate (sec. 4.4.2, eq. 31)."""

from typing import Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.system import Menu, PreparedRequest
from ega_jax.generation.compaction import map_where
from ega_jax.generation.reports import Report, absent


class MenuSearch(Protocol):
    """A system that can search a menu, optionally without one candidate; `EGA` is one."""

    def find_menu(self, prepared: PreparedRequest, report: Report | None = None) -> Menu:
        """See `EGA.find_menu`."""
        ...


@struct.dataclass
class Contributions:
    """The winning slates of a batch of requests, and what each of their items adds."""

    candidate: jax.Array  # [B, K] int32, -1 in empty slots.
    value: jax.Array  # [B] float32 values of the slates, in currency.
    contribution: jax.Array  # [B, K] float32 marginal contributions (31), in currency.


def marginal_contributions(
    values: jax.Array, items: jax.Array, where: jax.Array, chosen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Marginal contribution of each item (31): `value(S*) - value(best slate without it)`.

    The best slate without an item is taken from the beams. If all beams contain the item, its
    contribution is unknown, and a second search without the item is needed.

    Args:
      values: `[S]` values of the slates, in currency.
      items: `[S, K]` int32 candidates, -1 in empty slots.
      where: `[S]` bool, whether the beam holds a slate.
      chosen: `[]` int32 index of the winning slate.

    Returns:
      The contributions `[K]` float32 of the winning slate's items, 0 if unknown or in empty slots;
      and whether they are known, `[K]` bool.
    """
    chex.assert_rank([values, items, where], [1, 2, 1])
    item = items[chosen]
    lacks = where & ~jnp.any(items == item[:, None, None], axis=-1)  # [K, S]
    found = (item >= 0) & lacks.any(-1)
    without = jnp.max(jnp.where(lacks, values, -jnp.inf), axis=-1)
    return jnp.where(found, values[chosen] - jnp.where(found, without, 0.0), 0.0), found


def contributions(system: MenuSearch, prepared: PreparedRequest) -> Contributions:
    """Winning slates and marginal contributions of their items (31), for a batch of requests.

    The best slate without an item is taken from the menu. The search runs again only for items
    that are in all slates of the menu.

    Args:
      system: the system that searches.
      prepared: the requests, from a `vmap` of `prepare`.
    """
    menu = jax.vmap(system.find_menu)(prepared)
    best = jnp.argmax(menu.value, axis=-1)
    known, found = jax.vmap(marginal_contributions)(menu.value, menu.candidate, menu.where, best)
    candidate = jnp.take_along_axis(menu.candidate, best[:, None, None], axis=1)[:, 0]
    batch, slots = candidate.shape

    def value_without(rows: jax.Array) -> jax.Array:
        request, slot = rows // slots, rows % slots
        searched = jax.tree.map(lambda x: x[request], prepared)
        menus = jax.vmap(system.find_menu)(searched, absent(candidate[request, slot]))
        return menus.value.max(-1)

    missing = (candidate >= 0) & ~found
    searched = map_where(value_without, missing.reshape(-1), chunk=batch).reshape(batch, slots)
    value = menu.value.max(-1)
    contribution = jnp.where(missing, value[:, None] - searched, known)
    return Contributions(candidate, value, contribution)
