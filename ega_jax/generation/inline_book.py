"""The book of one request's own list of ads, built on device."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ega_jax.generation.ad_book import UNAVAILABLE, AdBook, LayerBids, Worth, smoothed


def inline_book(
    codes: jax.Array,
    item: jax.Array,
    bid: jax.Array,
    where: jax.Array,
    *,
    eligible: jax.Array,
    smoothing: chex.Numeric,
    num_listed: int,
    token_bid: str,
    scope: str,
    num_codes: int,
    search_bid: jax.Array | None = None,
    reserve: jax.Array | None = None,
    worth: Worth | None = None,
    widths: tuple[int, ...] | None = None,
) -> AdBook:
    """Builds the book of one request's own list, on device; `vmap` it over requests.

    Args:
      codes: `[N, C]` int32 codes of the list's items.
      item: `[N]` int32 POIs; the list may hold organic items, which are no ads of the book.
      bid: `[N]` float32 live bids, currency per click.
      where: `[N]` bool, whether the entry is an ad.
      eligible: `[N]` bool, whether the ad may be shown.
      smoothing: from 0 to 1, weight of `search_bid` in what the search sees of bids.
      num_listed: `L`, static; at least the slots of a slate plus 1.
      token_bid: "max" or "mean", static.
      scope: "prefix" or "layer", static.
      num_codes: `W`, static.
      search_bid: `[N]` float32; default: 0 for every ad.
      reserve: `[N]` float32 least bid of each ad; default: 0.
      worth: what the search sees of bids; default: the bids.
      widths: the most children that a node has, by depth, static; default: `N`.

    Returns:
      A forest of one book, whose ads have the numbers of their entries in the list.
    """
    given = jnp.zeros_like(bid) if search_bid is None else search_bid
    reserve = jnp.zeros(bid.shape, jnp.float32) if reserve is None else reserve
    live, given = (x if worth is None else worth.of(x) for x in (bid, given))
    seen = smoothed(live, given, smoothing).astype(jnp.float32)
    search_bid = jnp.where(where & eligible & (bid >= reserve), seen, UNAVAILABLE)
    n, c = codes.shape
    end = where.sum(dtype=jnp.int32)
    node, start = jnp.zeros(n, jnp.int32), jnp.stack([jnp.int32(0), end])
    levels = []
    for d in range(c):
        level = _level(codes[:, d], search_bid, where, node, start, num_listed)
        node, start = level.node, level.start
        levels.append(level)
    by_poi = jnp.argsort(jnp.where(where, item, jnp.iinfo(jnp.int32).max), stable=True)
    offsets = 2 + (n + 1) * np.arange(c)  # The book and its end come first.
    return AdBook(
        poi=item,
        bid=jnp.where(where, bid, 0.0).astype(jnp.float32),
        search_bid=search_bid,
        leaf=jnp.where(where, node + int(offsets[-1]), -1),
        by_poi=by_poi.astype(jnp.int32),
        book_start=jnp.stack([jnp.int32(0), end]),
        layer=_layer_bids(codes, search_bid, num_codes) if scope == "layer" else None,
        smoothing=jnp.asarray(smoothing, jnp.float32),
        widths=widths or (n,) * c,
        largest=n,
        given_bid=given,
        reserve=reserve,
        worth=worth,
        **_joined(levels, offsets, has_totals=token_bid == "mean" and scope == "prefix"),
    )


@struct.dataclass
class _Level:
    """The nodes of one depth above 0; names as in `AdBook`."""

    ranked: jax.Array  # [N] int32 ads by node of this depth, then by falling search bid.
    node: jax.Array  # [N] int32 node of each ad.
    start: jax.Array  # [N + 1] int32 node v holds `ranked[start[v]:start[v + 1]]`.
    first_child: jax.Array  # Of the nodes of the depth above.
    code: jax.Array  # [N]
    lists: jax.Array  # [N, L] int32 first ads of each node.
    best_bid: jax.Array  # [N]
    total: jax.Array  # [N, 2]


def _joined(levels: list[_Level], offsets: np.ndarray, has_totals: bool) -> dict[str, Any]:
    """The fields of `AdBook` by node, from the nodes of each depth above 0."""
    book, end = np.zeros(2), lambda x, fill: jnp.append(x, jnp.full((1, *x.shape[1:]), fill), 0)
    below = [level.first_child + int(o) for level, o in zip(levels, offsets, strict=True)]
    num_listed, num_inner = levels[0].lists.shape[1], int(offsets[-1])
    inner = [end(level.lists, -1).reshape(-1) for level in levels[:-1]]
    first = np.arange(num_inner, dtype=np.int32) * num_listed
    total = [np.zeros((2, 2), np.float32), *(end(level.total, 0) for level in levels)]
    return {
        "first_child": jnp.concatenate(below),
        "code": jnp.concatenate([book.astype(np.int32), *(end(x.code, 0) for x in levels)]),
        "best_bid": jnp.concatenate(
            [book + UNAVAILABLE, *(end(level.best_bid, UNAVAILABLE) for level in levels)]
        ).astype(jnp.float32),
        "listed": jnp.concatenate(
            [np.full(2 * num_listed, -1, np.int32), *inner, levels[-1].ranked]
        ),
        "list_start": jnp.append(first, num_inner * num_listed + levels[-1].start),
        "total": jnp.concatenate(total) if has_totals else None,
    }


def _level(code, search_bid, where, parent, parent_start, num_listed) -> _Level:
    """Splits the nodes of a depth by the codes `[N]` of their ads."""
    n, end = code.size, parent_start[-1]
    number = jnp.arange(n, dtype=jnp.int32)
    key = jnp.where(where, parent * (code.max() + 1) + code, jnp.iinfo(jnp.int32).max)
    key, _, ranked = lax.sort((key, -search_bid, number), num_keys=2, is_stable=True)
    is_start = (number < end) & jnp.append(True, key[1:] != key[:-1])
    sorted_node = jnp.cumsum(is_start, dtype=jnp.int32) - 1
    # Nodes of both depths are ranges of the same order, so a node's first child starts with it.
    first_child = sorted_node[jnp.minimum(parent_start, n - 1)]
    first_child = jnp.where(parent_start < end, first_child, is_start.sum(dtype=jnp.int32))
    start = jnp.nonzero(is_start, size=n, fill_value=n)[0].astype(jnp.int32)
    start = jnp.minimum(jnp.append(start, n), end)
    place = start[:-1, None] + jnp.arange(num_listed, dtype=jnp.int32)[None]
    there = place < start[1:, None]
    lists = jnp.where(there, ranked[jnp.minimum(place, n - 1)], -1)
    node = jnp.zeros(n, jnp.int32).at[ranked].set(sorted_node)
    return _Level(
        ranked=ranked,
        node=node,
        start=start,
        first_child=first_child,
        code=code[jnp.maximum(lists[:, 0], 0)].astype(jnp.int32),
        lists=lists,
        best_bid=jnp.where(there[:, 0], search_bid[lists[:, 0]], UNAVAILABLE),
        total=_totals(search_bid, node, where),
    )


def _totals(search_bid: jax.Array, node: jax.Array, where: jax.Array) -> jax.Array:
    """Sum and number of search bids of eligible ads by node, `[N, 2]`."""
    counted = where & (search_bid >= 0)
    each = jnp.stack([jnp.where(counted, search_bid, 0.0), counted.astype(jnp.float32)], axis=-1)
    return jnp.zeros((node.shape[0], 2)).at[node].add(each)


def _layer_bids(codes: jax.Array, search_bid: jax.Array, num_codes: int) -> LayerBids:
    """Bids by layer and code of one request's list, with a leading axis of one book."""
    number = jnp.arange(codes.shape[0], dtype=jnp.int32)
    counted = search_bid >= 0
    value = jnp.where(counted, search_bid, 0.0)

    def layer(code: jax.Array) -> LayerBids:
        empty = jnp.zeros(num_codes)
        best = empty.at[code].max(value)
        is_best = counted & (value == best[code])
        none = jnp.full(num_codes, codes.shape[0], jnp.int32)
        best_ad = none.at[code].min(jnp.where(is_best, number, codes.shape[0]))
        others = jnp.where(number == best_ad[code], 0.0, value)
        return LayerBids(
            best=best,
            best_ad=jnp.where(best_ad < codes.shape[0], best_ad, -1),
            second=empty.at[code].max(others),
            total=empty.at[code].add(value),
            count=empty.at[code].add(counted.astype(jnp.float32)),
        )

    found = jax.vmap(layer, in_axes=1)(codes)
    return jax.tree.map(lambda x: x[None], found)
