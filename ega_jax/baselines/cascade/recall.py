"""Recall, the first stage of the funnel: TIGER's beam search over the leaves of a request's book.

The search sees no bid. Its softmax runs over the codes that may follow in the book, as the one of
EGA's search does (22). Ads with equal codes share a leaf and are recalled together, as long as the
budget allows, and then by number. So recall does not depend on bids, although a book lists the ads
of a leaf by bid.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.baselines.cascade.funnel import FunnelSettings
from ega_jax.generation.ad_book import AdBook
from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.decoder import Decoder
from ega_jax.generation.slate_space import Options, Prefix

_LAST = jnp.iinfo(jnp.int32).max


@struct.dataclass
class Leaves:
    """The leaves of one book of a forest, for a search for single leaves; see `SlateSpace`."""

    book: AdBook
    root: jax.Array  # [] int32 number of the book.

    @property
    def widths(self) -> tuple[int, ...]:
        """The most children of a node, by depth."""
        return self.book.widths

    def options(self, depth: chex.Numeric, prefix: Prefix, width: int) -> Options:
        """The children of nodes that hold ads which may be shown, without bids."""
        del depth  # Nodes of all depths are numbered together.
        first, count = self.book.children(prefix.node)
        column = jnp.arange(width + 1, dtype=jnp.int32)[None]
        child = first[:, None] + column
        where = (column < count[:, None]) & (self.book.best_bid[child] >= 0)
        return Options(
            node=jnp.where(where, child, -1),
            code=jnp.where(where, self.book.code[child].astype(jnp.int32), 0),
            bid=jnp.zeros(where.shape),
            where=where,
        )

    def item(self, prefix: Prefix) -> jax.Array:
        """The leaves `[S]` that full codes lead to, -1 for none."""
        return prefix.node

    def ids(self, chosen: jax.Array) -> jax.Array:
        """Leaves are numbered as their nodes."""
        return chosen


def recall(
    decoder: Decoder, memory: Any, book: AdBook, root: jax.Array, settings: FunnelSettings
) -> jax.Array:
    """Recalls ads from one book of a forest; one request, `vmap` it over a batch.

    Args:
      decoder: TIGER; its slates have one slot.
      memory: the encoded history of the request.
      book: the forest.
      root: `[]` int32 number of the book.
      settings: the budgets; if all ads of the largest book are kept, there is no search.

    Returns:
      `[R]` int32 ads, likeliest first, -1 where there is none; `R` depends on the largest book.
    """
    most = settings.most_of(book.largest)
    start, end = book.book_start[root], book.book_start[root + 1]
    if most == book.largest:
        return _all_ads(book, start, end)
    return likeliest_ads(decoder, memory, book, root, settings.number_of(end - start), most)


def likeliest_ads(
    decoder: Decoder, memory: Any, book: AdBook, root: jax.Array, number: chex.Numeric, most: int
) -> jax.Array:
    """The first `number [] <= most` ads of the search with `most` beams; `[most]`, as `recall`."""
    leaves = Leaves(book, jnp.asarray(root, jnp.int32))
    found = beam_search(decoder, memory, leaves, num_beams=most, num_slots=1)
    return ads_of(book, found.items[:, 0], number, most)


def _all_ads(book: AdBook, start: jax.Array, end: jax.Array) -> jax.Array:
    """The ads `[R]` of a book that may be shown, in the order of their POIs."""
    place = start + jnp.arange(book.largest, dtype=jnp.int32)
    ads = book.by_poi[jnp.minimum(place, book.num_ads - 1)]
    return jnp.where((place < end) & (book.search_bid[ads] >= 0), ads, -1)


def ads_of(book: AdBook, leaves: jax.Array, number: chex.Numeric, most: int) -> jax.Array:
    """The first `number` ads of leaves, by leaf, then by number.

    Args:
      book: the forest.
      leaves: `[S]` int32, best first, -1 for none.
      number: `[]` int32, of which at most `most` are returned.
      most: `R`, static.

    Returns:
      `[R]` int32 ads, -1 after the last.
    """
    start, count = book.eligible_ads(leaves)
    ends, place = jnp.cumsum(count), jnp.arange(most, dtype=jnp.int32)
    # Leaf `row[r]` holds the ad at place r; row S is after the last leaf.
    row = jnp.searchsorted(ends, place, side="right")
    last = jnp.searchsorted(ends, jnp.minimum(number, most) - 1, side="right")
    offset = place - (ends - count)[row]
    lowest = _lowest_ads(book, start[last], count[last], most)
    lowest = lowest[jnp.clip(offset, 0, most - 1)]
    ads = jnp.where(row == last, lowest, book.listed[start[row] + offset])
    there = (place < number) & (row < leaves.size)
    order = jnp.lexsort((ads, jnp.where(there, row, leaves.size)))
    return jnp.where(there, ads[order], -1)


def _lowest_ads(book: AdBook, start: jax.Array, count: jax.Array, number: int) -> jax.Array:
    """The lowest of `count` ads that are listed from a place on, `[number]` in rising order."""

    def merge(step: jax.Array, kept: jax.Array) -> jax.Array:
        offset = step * number + jnp.arange(number, dtype=jnp.int32)
        ads = jnp.where(offset < count, book.listed[start + offset], _LAST)
        return jnp.sort(jnp.concatenate([kept, ads]))[:number]

    steps = -(-count // number)
    return lax.fori_loop(0, steps, merge, jnp.full(number, _LAST, jnp.int32))
