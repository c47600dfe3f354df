"""The queue of organic items of a request, which keep their upstream order."""

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.generation.ad_book import AdBook, Worth


@struct.dataclass
class OrganicQueue:
    """The organic items of a request, in upstream order, with their places in a book."""

    id: jax.Array  # [M] int32 candidates, -1 padding after the last.
    poi: jax.Array  # [M] int32, -1 padding.
    codes: jax.Array  # [M, C] int32.
    path: jax.Array  # [M, C] int32 nodes of depths 1 to C, -1 where the prefix is not in the book.
    place: jax.Array  # [M, C] int32 place that the code has or would have among its siblings.
    ad: jax.Array  # [M] int32 ad of the same POI in the book, -1 for none.
    ad_path: jax.Array  # [M, C] int32 its nodes.
    value: jax.Array  # [M] float32 what the search sees in place of a bid, currency per click.


def listed_organic(item: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Numbers and POIs `[N]` int32 of the list's organic items in order, padded with -1.

    Args:
      item: `[N]` int32 POIs of a request's list.
      where: `[N]` bool, whether the entry is an organic item that may be shown.
    """
    order = jnp.argsort(~where, stable=True).astype(jnp.int32)
    return jnp.where(where[order], order, -1), jnp.where(where[order], item[order], -1)


def within_reach(items: jax.Array, num_slots: int, scope: str) -> jax.Array:
    """The organic items `[N]` that a slate may show, or of which its token bids depend: `[M]`.

    Before the last slot, at most `K - 1` items were shown, as organic items or as ads whose POI the
    queue then skips, and one may be absent. In the scope "layer" all items count for a mean.
    """
    return items if scope == "layer" else items[: num_slots + 1]


def organic_queue(
    book: AdBook,
    root: chex.Numeric,
    id: jax.Array,
    poi: jax.Array,
    codes: jax.Array,
    worth: Worth | None = None,
) -> OrganicQueue:
    """Finds organic items `[M]` with codes `[M, C]` in one book of a forest.

    An item is worth as much as an ad that bids 0: nothing without `worth`, which is that of the
    items by `id`.
    """
    node = jnp.broadcast_to(jnp.asarray(root, jnp.int32), poi.shape)
    path, places = [], []
    for depth in range(codes.shape[-1]):
        place, exists = book.find_child(node, codes[:, depth])
        node = jnp.where(exists, book.children(node)[0] + place, -1)
        path.append(node)
        places.append(place)
    ad = book.ads_of(poi, root)
    stack = lambda columns: jnp.stack(columns, axis=-1)
    value = jnp.zeros(poi.shape)
    if worth is not None:
        value = jnp.where(id >= 0, worth.of(value, id), value)
    return OrganicQueue(id, poi, codes, stack(path), stack(places), ad, book.path(ad), value)
