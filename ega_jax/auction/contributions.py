"""What each item adds to the slate that wins (sec. 4.4.2, eq. 31)."""

import jax
import jax.numpy as jnp

from ega_jax.auction.alignment import marginal_contributions
from ega_jax.auction.ega import AllocationConfig, Models, find_menu
from ega_jax.auction.system import Levers, Offer
from ega_jax.generation.compaction import map_where


def contributions(
    models: Models,
    config: AllocationConfig,
    offers: Offer,
    bid: jax.Array,
    levers: Levers,
) -> tuple[jax.Array, jax.Array]:
    """The slates that win and what each of their items adds (31), for a batch of requests.

    The best slate without an item is looked for in the menu; the search runs again only for
    those items that are in all of its slates.

    Args:
      models: generator, reward model, items.
      config: sizes.
      offers: of the requests, from a `vmap` of `prepare`.
      bid: `[B, N]` float32 currency per click.
      levers: run-time settings.

    Returns:
      The slates' candidates `[B, K]`, -1 where empty, and contributions `[B, K]` in currency.
    """
    menu = jax.vmap(lambda offer, b: find_menu(models, config, offer, b, levers))(offers, bid)
    best = jnp.argmax(menu.value, axis=-1)
    known, found = jax.vmap(marginal_contributions)(menu.value, menu.candidate, menu.where, best)
    candidate = jnp.take_along_axis(menu.candidate, best[:, None, None], axis=1)[:, 0]
    batch, slots = candidate.shape

    def without(rows):
        request, slot = rows // slots, rows % slots
        offer = jax.tree.map(lambda x: x[request], offers)
        again = lambda o, b, c: find_menu(models, config, o, b, levers, c).value.max()
        return jax.vmap(again)(offer, bid[request], candidate[request, slot])

    missing = (candidate >= 0) & ~found
    searched = map_where(without, missing.reshape(-1), chunk=batch).reshape(batch, slots)
    return candidate, jnp.where(missing, menu.value.max(-1)[:, None] - searched, known)
