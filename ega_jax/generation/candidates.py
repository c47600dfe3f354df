"""The possible next codes of a partial slate, with their token bids.

A search needs two functions: the codes that may follow a prefix, with their token bids, given the
items already in the beam (sec. 4.3.1), and the item that a full code represents. `Candidates`
answers both for one request: the ads of a book under the rules of a slate, and a queue of organic
items that keep their upstream order. An item is used once. Ads are limited in number, by a reserve
and by a least gap between two of them.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.generation.ad_book import AdBook, Worth
from ega_jax.generation.bidding import SCOPES, TOKEN_BIDS
from ega_jax.generation.inline_book import inline_book
from ega_jax.generation.organic_queue import (
    OrganicQueue,
    listed_organic,
    organic_queue,
    within_reach,
)
from ega_jax.generation.reports import ABSENT, Overlay, Report
from ega_jax.generation.siblings import Siblings
from ega_jax.generation.slate_space import Options, Prefix


@struct.dataclass
class Used:
    """What `S` partial slates have used, and what may follow."""

    ads: jax.Array  # [S, U] int32 ads that a child no longer stands for, -1 for none.
    path: jax.Array  # [S, U, C] int32 their nodes.
    organic: jax.Array  # [S] int32 number in the queue of the next organic item, -1 for none.
    ads_allowed: jax.Array  # [S] bool, whether `max_ads` and `min_gap` permit an ad.
    offered: jax.Array  # [S] bool, whether the ad of the report may be used at its reported bid.


@struct.dataclass
class Candidates:
    """The items that one request may show: ads of one book, and organic items.

    A child of a node stands for its best available item: the first unused ad by search bid, else
    the next organic item. Its bid is that ad's (token bid "max"), and at the last depth that ad is
    the item that the code selects. An item is numbered as in its list (`ids`); in a beam, an
    organic item is `num_ads` plus its number in the queue.
    """

    book: Any  # AdBook.
    root: jax.Array  # [] int32 number of the book in the forest.
    organic: OrganicQueue
    overlay: Overlay  # A report, [].
    reserve: jax.Array  # [] float32 least bid of any ad that is shown, currency per click.
    max_ads: jax.Array  # [] int32 maximum number of ads in a slate.
    min_gap: jax.Array  # [] int32 minimum number of organic items between two ads.
    token_bid: str = struct.field(pytree_node=False)
    scope: str = struct.field(pytree_node=False)

    @property
    def widths(self) -> tuple[int, ...]:
        """The most children of a node, by depth; see `SlateSpace`."""
        return self.book.widths

    def reporting(self, report: Report) -> "Candidates":
        """The candidates under a report of one ad."""
        return dataclasses.replace(self, overlay=self.overlay_of(report))

    def overlay_of(self, report: Report) -> Overlay:
        """Finds the ads of reports `[...]` in the book."""
        return Overlay(report.candidate, report.bid, self.book.path(report.candidate))

    def poi(self, candidate: jax.Array) -> jax.Array:
        """POIs `[...]` int32 of candidates, -1 for none."""
        n = self.book.num_ads
        listed = self.book.poi[jnp.clip(candidate, 0, n - 1)]
        queued = self.organic.poi[jnp.maximum(candidate - n, 0)]
        return jnp.where(candidate < 0, -1, jnp.where(candidate < n, listed, queued))

    def is_ad(self, candidate: jax.Array) -> jax.Array:
        """Whether candidates `[...]` are ads."""
        is_listed = (candidate >= 0) & (candidate < self.book.num_ads)
        return is_listed & (self.book.leaf[jnp.where(is_listed, candidate, 0)] >= 0)

    def bid(self, candidate: jax.Array) -> jax.Array:
        """Bids `[...]` of candidates, with the report, currency per click; 0 if organic."""
        is_ad = self.is_ad(candidate)
        listed = jnp.where(is_ad, self.book.bid[jnp.where(is_ad, candidate, 0)], 0.0)
        reports = (candidate == self.overlay.candidate) & (candidate >= 0)
        return jnp.where(reports, jnp.maximum(self.overlay.bid, 0.0), listed)

    def reserve_of(self, candidate: jax.Array) -> jax.Array:
        """Least bids and prices `[...]` of candidates, currency per click; 0 if organic."""
        is_ad = self.is_ad(candidate)
        own = self.book.reserve[jnp.where(is_ad, candidate, 0)]
        return jnp.where(is_ad, jnp.maximum(own, self.reserve), 0.0)

    def ids(self, chosen: jax.Array) -> jax.Array:
        """Candidates of the request; see `SlateSpace`."""
        n = self.book.num_ads
        return jnp.where(chosen < n, chosen, self.organic.id[jnp.maximum(chosen - n, 0)])

    def chosen(self, candidate: jax.Array) -> jax.Array:
        """The inverse of `ids`."""
        queue = self.organic.id.reshape(*(1,) * candidate.ndim, -1)
        same = (candidate[..., None] == queue) & (candidate >= 0)[..., None]
        queued = self.book.num_ads + jnp.argmax(same, axis=-1).astype(jnp.int32)
        return jnp.where(same.any(-1), queued, candidate)

    def nodes(self, chosen: jax.Array) -> jax.Array:
        """Nodes `[..., C]` of depths 1 to C of items as `chosen` holds them."""
        n = self.book.num_ads
        of_ads = self.book.path(jnp.where(chosen < n, chosen, -1))
        queued = self.organic.path[jnp.maximum(chosen - n, 0)]
        return jnp.where((chosen < n)[..., None], of_ads, queued)

    def codes(self, chosen: jax.Array) -> jax.Array:
        """Codes `[..., C]` of items as `chosen` holds them, 0 for none."""
        n, nodes = self.book.num_ads, self.nodes(chosen)
        of_ads = self.book.code[nodes].astype(jnp.int32)
        queued = self.organic.codes[jnp.maximum(chosen - n, 0)]
        codes = jnp.where((chosen < n)[..., None], of_ads, queued)
        return jnp.where((chosen >= 0)[..., None], codes, 0)

    def options(self, depth: chex.Numeric, prefix: Prefix, width: int) -> Options:
        """Possible next codes in rising order; see `SlateSpace`.

        `F` is the most children of a node at that depth, plus 1 for the next organic item. If that
        item's code is also a child's, there is one option: the ad's while the child has one
        available, else the organic item's.

        Args:
          depth: number of codes of the prefixes.
          prefix: the beams.
          width: static, at least the children of any of their nodes.
        """
        used = self.used(prefix)
        siblings = self._siblings(depth, prefix, used)
        column = jnp.arange(width + 1, dtype=jnp.int32)[None]
        child = siblings.child(column)
        # Children that hold used ads differ from what the book says of them.
        nodes, beam = _at(used.path, depth), jnp.arange(child.shape[0])[:, None]
        at = beam, siblings.column(nodes)
        best = self.book.best_bid[child]
        best = best.at[at].set(self._first_unused(depth, nodes, used)[1], mode="drop")
        total = None
        if self._takes_means:
            total = self.book.total[child]
            total = total.at[at].set(self._totals(depth, nodes, used), mode="drop")
        return self._options(depth, used, siblings, column, best, total)

    def option(self, depth: chex.Numeric, prefix: Prefix, column: jax.Array) -> Options:
        """One option of each beam, by its column `[S]` in `options`: `F` is 1.

        A column out of range is no valid option.
        """
        used = self.used(prefix)
        siblings = self._siblings(depth, prefix, used)
        child = siblings.child(column[:, None])
        best = self._first_unused(depth, child, used)[1]
        total = self._totals(depth, child, used) if self._takes_means else None
        return self._options(depth, used, siblings, column[:, None], best, total)

    def report_column(self, depth: chex.Numeric, prefix: Prefix) -> jax.Array:
        """Column `[S]` of the only option of each beam that the report changes."""
        siblings = self._siblings(depth, prefix, self.used(prefix))
        node = jnp.broadcast_to(_at(self.overlay.path, depth), prefix.node.shape)
        if self.scope == "prefix":
            return siblings.column(node[:, None])[:, 0]
        code = jnp.broadcast_to(self._report_code(depth), prefix.node.shape)
        place, exists = self.book.find_child(prefix.node, code)
        column = siblings.column(jnp.where(exists, siblings.first + place, -1)[:, None])[:, 0]
        is_queued = siblings.is_inserted & (siblings.code == code)
        return jnp.where(is_queued, siblings.place, column)

    def _siblings(self, depth: chex.Numeric, prefix: Prefix, used: Used) -> Siblings:
        """The children of the prefixes' nodes, with the next organic item among them."""
        first, count = self.book.children(prefix.node)
        queue, number = self.organic, used.organic
        is_below = jnp.arange(self.book.num_layers)[None] >= depth
        same = (queue.codes[number] == prefix.codes) | is_below
        follows = (number >= 0) & jnp.all(same, axis=-1)
        in_book = prefix.node >= 0
        place = jnp.where(in_book, _at(queue.place[number], depth), 0)
        is_child = in_book & (_at(queue.path[number], depth) >= 0)
        return Siblings(
            first=first,
            count=count,
            place=jnp.where(follows, place, -1),
            is_inserted=follows & ~is_child,
            code=_at(queue.codes[number], depth),
        )

    def _options(
        self, depth: chex.Numeric, used: Used, siblings: Siblings, column: jax.Array, best, total
    ) -> Options:
        """The options of given columns.

        Args:
          depth: number of codes of the prefixes.
          used: what the beams have used.
          siblings: the children of their nodes.
          column: `[S, F]` or `[1, F]`.
          best: `[S, F]` search bids of the children's first unused ads.
          total: `[S, F, 2]` sums and numbers of their available ads' search bids, for means.
        """
        is_child, child = siblings.is_child(column), siblings.child(column)
        is_available = is_child & used.ads_allowed[:, None] & (best >= self._least_bid)
        is_place = column == siblings.place[:, None]
        is_organic = is_place & ~is_available
        code = self.book.code[child].astype(jnp.int32)
        code = jnp.where(is_organic, siblings.code[:, None], code)
        queued = self.organic.value[used.organic][:, None]
        if self.scope == "layer":
            bid = self._layer_bids(depth, code)
        elif total is not None:
            here = is_place & is_child
            summed = jnp.maximum(total[..., 0], 0.0) + jnp.where(here, queued, 0.0)
            bid = jnp.where(is_organic, queued, summed / jnp.maximum(total[..., 1] + here, 1.0))
        else:
            # The organic item counts where it may follow; a leaf's ad goes before it.
            follows = is_place & (is_organic | (depth < self.book.num_layers - 1))
            bid = jnp.where(is_available, best, 0.0)
            bid = jnp.where(follows, jnp.maximum(bid, queued), bid)
        where = is_available | is_organic
        return Options(
            node=jnp.where(is_available, child, -1),
            code=jnp.where(where, code, 0),
            bid=jnp.where(where, bid, 0.0),
            where=where,
        )

    def item(self, prefix: Prefix) -> jax.Array:
        """Item that each full code represents; see `SlateSpace`."""
        used = self.used(prefix)
        ad, bid = self._first_unused(self.book.num_layers - 1, prefix.node[:, None], used)
        is_ad = used.ads_allowed & (bid[:, 0] >= self._least_bid)
        queued = jnp.where(used.organic >= 0, self.book.num_ads + used.organic, -1)
        return jnp.where(is_ad, ad[:, 0], jnp.where(prefix.node < 0, queued, -1))

    def used(self, prefix: Prefix) -> Used:
        """What the partial slates have used, and what may follow."""
        chosen, n = prefix.chosen, self.book.num_ads
        is_organic, is_ad = chosen >= n, (chosen >= 0) & (chosen < n)
        queued = jnp.where(is_organic, chosen - n, 0)
        # A POI that was shown as an organic item uses its ad, too.
        ads = jnp.where(is_organic, self.organic.ad[queued], chosen)
        path = jnp.where(is_organic[..., None], self.organic.ad_path[queued], prefix.nodes)
        report = self.overlay
        beams = chosen.shape[0]
        is_shown = jnp.any(ads == report.candidate, axis=1, keepdims=True)
        reporting = jnp.where(is_shown, -1, jnp.broadcast_to(report.candidate, (beams, 1)))
        report_path = jnp.broadcast_to(self.overlay.path, (beams, 1, path.shape[-1]))
        return Used(
            ads=jnp.concatenate([ads, reporting], axis=1),
            path=jnp.concatenate([path, report_path], axis=1),
            organic=self._next_organic(prefix, jnp.where(is_ad, chosen, -1)),
            ads_allowed=prefix.live & self._ads_allowed(chosen, is_ad),
            offered=self._is_bid & ~is_shown[:, 0],
        )

    def _next_organic(self, prefix: Prefix, shown_ads: jax.Array) -> jax.Array:
        """Number in the queue `[S]` of the next organic item, -1 if none is left."""
        # The queue skips an item whose POI the slate shows as an ad.
        same = self.organic.ad[None, :, None] == shown_ads[:, None]  # [S, M, K]
        is_skipped = jnp.any(same & (shown_ads >= 0)[:, None], axis=-1)
        last = jnp.max(prefix.chosen, axis=-1, keepdims=True) - self.book.num_ads
        number = jnp.arange(self.organic.id.shape[0], dtype=jnp.int32)[None]
        is_left = self._is_queued[None] & (number > last) & ~is_skipped & prefix.live[:, None]
        first = jnp.argmax(is_left, axis=-1).astype(jnp.int32)
        return jnp.where(is_left.any(-1), first, -1)

    @property
    def _is_queued(self) -> jax.Array:
        """Whether each entry of the queue is an item that the report leaves there, `[M]` bool."""
        is_absent = (self.organic.id == self.overlay.candidate) & (self.overlay.bid < 0)
        return (self.organic.id >= 0) & ~is_absent

    @property
    def _is_bid(self) -> jax.Array:
        """Whether the report is a bid of an ad, and at least the reserve; `[]` bool."""
        bid = self.overlay.bid
        is_bid = (self.overlay.path[0] >= 0) & (bid >= 0)
        return is_bid & (bid >= self.reserve_of(self.overlay.candidate))

    def _ads_allowed(self, chosen: jax.Array, is_ad: jax.Array) -> jax.Array:
        slot = jnp.arange(chosen.shape[1], dtype=jnp.int32)[None]
        last = jnp.max(jnp.where(is_ad, slot, -1), axis=-1)
        gap = (chosen >= 0).sum(-1) - last - 1
        return (is_ad.sum(-1) < self.max_ads) & ((last < 0) | (gap >= self.min_gap))

    @property
    def _least_bid(self) -> jax.Array:
        """The least search bid of an ad that is shown; ads of a node stand by falling bid."""
        if self.book.worth is not None:  # The book holds no ad below the reserve.
            return jnp.float32(0.0)
        return jnp.where(self.book.smoothing == 0, jnp.maximum(self.reserve, 0.0), 0.0)

    def _first_unused(self, depth, node: jax.Array, used: Used) -> tuple[jax.Array, jax.Array]:
        """First unused ad of nodes `[S, V]` of depth `depth + 1`, and its search bid; -1: none."""
        ads = self.book.first_ads(node, used.ads.shape[1])  # [S, V, L]
        is_used = jnp.any(ads[..., None] == used.ads[:, None, None], axis=-1)
        is_free = (ads >= 0) & ~is_used
        place = jnp.argmax(is_free, axis=-1)[..., None]
        ad = jnp.where(is_free.any(-1), jnp.take_along_axis(ads, place, axis=-1)[..., 0], -1)
        bid = jnp.where(ad >= 0, self.book.search_bid[ad], -1.0)
        # The ad of the report counts as used, and is offered apart, in its order of the list.
        reported, here = self._reported_bid, node == _at(self.overlay.path, depth)
        is_first = (reported > bid) | ((reported == bid) & (self.overlay.candidate < ad))
        is_reported = used.offered[:, None] & here & is_first
        ad = jnp.where(is_reported, self.overlay.candidate, ad)
        return ad, jnp.where(is_reported, reported, bid)

    @property
    def _reported_bid(self) -> jax.Array:
        """The search bid of the ad that reports; a search without live bids does not see it."""
        return self.book.seen(self.overlay.bid, self.overlay.candidate)

    @property
    def _takes_means(self) -> bool:
        return self.token_bid == "mean" and self.scope == "prefix"

    def _totals(self, depth: chex.Numeric, node: jax.Array, used: Used) -> jax.Array:
        """Sum and number of the search bids of available ads below children, `[S, V, 2]`."""
        bid = jnp.where(used.ads >= 0, self.book.search_bid[used.ads], -1.0)
        each = jnp.stack([jnp.maximum(bid, 0.0), (bid >= 0).astype(jnp.float32)], axis=-1)
        is_below = node[:, :, None] == _at(used.path, depth)[:, None]
        taken = jnp.sum(jnp.where(is_below[..., None], each[:, None], 0.0), axis=2)
        is_reported = used.offered[:, None] & (node == _at(self.overlay.path, depth))
        added = jnp.stack([self._reported_bid, jnp.float32(1.0)])
        added = jnp.where(is_reported[..., None], added[None, None], 0.0)
        return self.book.total[node] - taken + added

    def _layer_bids(self, depth: chex.Numeric, code: jax.Array) -> jax.Array:
        """Bids `[S, F]` of codes by all items of the request with the code at this layer."""
        assert self.book.layer is not None
        layer = jax.tree.map(lambda x: x[self.root, depth], self.book.layer)  # [W]
        ad, own_code = self.overlay.candidate, self._report_code(depth)
        offered = jnp.where(self._is_bid, self._reported_bid, 0.0)
        at_own = jnp.arange(layer.best.shape[0]) == own_code
        if self.token_bid == "max":
            others = jnp.where(layer.best_ad == ad, layer.second, layer.best)
            return jnp.where(at_own, jnp.maximum(others, offered), others)[code]
        own = jnp.where(ad >= 0, self.book.search_bid[ad], -1.0)
        total = layer.total + at_own * (offered - jnp.maximum(own, 0.0))
        ones = self._is_bid.astype(jnp.float32) - (own >= 0)
        queued = jnp.where(self._is_queued, _at(self.organic.codes, depth), layer.best.shape[0])
        count = (layer.count + at_own * ones).at[queued].add(1.0, mode="drop")
        return (total / jnp.maximum(count, 1.0))[code]

    def _report_code(self, depth: chex.Numeric) -> jax.Array:
        """Code of the ad that reports in a layer, -1 without report."""
        node = _at(self.overlay.path, depth)
        return jnp.where(node >= 0, self.book.code[node].astype(jnp.int32), -1)


def _at(by_depth: jax.Array, depth: chex.Numeric) -> jax.Array:
    """The entries `[...]` of one depth from `[..., C]`."""
    return lax.dynamic_index_in_dim(by_depth, depth, axis=-1, keepdims=False)


def list_candidates(
    codes: jax.Array,
    item: jax.Array,
    is_ad: jax.Array,
    bid: jax.Array,
    where: jax.Array,
    *,
    num_slots: int,
    num_codes: int,
    smoothing: chex.Numeric = 0.0,
    reserve: chex.Numeric = 0.0,
    max_ads: chex.Numeric | None = None,
    min_gap: chex.Numeric = 0,
    token_bid: str = "max",
    scope: str = "prefix",
    search_bid: jax.Array | None = None,
    own_reserve: jax.Array | None = None,
    worth: Worth | None = None,
    widths: tuple[int, ...] | None = None,
) -> Candidates:
    """Indexes one request's own list of candidates, on device; `vmap` it over requests.

    Args:
      codes: `[N, C]` int32 codes of the candidates.
      item: `[N]` int32 their POIs; organic items are in upstream order.
      is_ad: `[N]` bool.
      bid: `[N]` float32 bids in currency per click, at least 0; ignored for organic items.
      where: `[N]` bool, whether the candidate exists and may be shown.
      num_slots: `K`, static, the most slots of a slate.
      num_codes: `W`, static.
      smoothing: from 0 to 1, weight of `search_bid` in what the search sees of bids; see
        `ega_jax.generation.ad_book.smoothed`.
      reserve: least bid of any ad that is shown.
      max_ads: maximum number of ads in a slate; no limit by default.
      min_gap: minimum number of organic items between two ads.
      token_bid: "max" or "mean", how item bids are combined to a token's bid; static.
      scope: the items that count for a token's bid, static: with "prefix", those under the prefix
        decoded so far that the beam may still use; with "layer", all items with the code at that
        layer.
      search_bid: `[N]` float32, at least 0 for ads; default: 0.
      own_reserve: `[N]` float32 least bid of each ad; default: 0.
      worth: what the search sees of the bids of the `N` candidates; default: the bids.
      widths: the most children that a node of the ads' codes has, by depth, static; default: `N`.

    Returns:
      The indexed candidates; shapes depend only on `N`, `C`, `K` and `W`.

    Raises:
      ValueError: `token_bid` or `scope` is not one of these choices.
    """
    _check_choice("token_bid", token_bid, TOKEN_BIDS)
    _check_choice("scope", scope, SCOPES)
    book = inline_book(
        codes,
        item,
        bid,
        where & is_ad,
        eligible=bid >= reserve,
        smoothing=smoothing,
        num_listed=num_slots + 1,
        token_bid=token_bid,
        scope=scope,
        num_codes=num_codes,
        search_bid=search_bid,
        reserve=own_reserve,
        worth=worth,
        widths=widths,
    )
    listed = listed_organic(item, where & ~is_ad)
    number, poi = (within_reach(x, num_slots, scope) for x in listed)
    return book_candidates(
        book,
        0,
        organic_queue(book, 0, number, poi, codes[jnp.maximum(number, 0)], worth),
        reserve=reserve,
        max_ads=max_ads,
        min_gap=min_gap,
        token_bid=token_bid,
        scope=scope,
    )


def book_candidates(
    book: AdBook,
    root: chex.Numeric,
    organic: OrganicQueue,
    *,
    reserve: chex.Numeric = 0.0,
    max_ads: chex.Numeric | None = None,
    min_gap: chex.Numeric = 0,
    token_bid: str = "max",
    scope: str = "prefix",
) -> Candidates:
    """The candidates of a request: the ads of book `root` and organic items, without a report.

    Other arguments as in `list_candidates`.
    """
    return Candidates(
        book=book,
        root=jnp.asarray(root, jnp.int32),
        organic=organic,
        overlay=Overlay(jnp.int32(-1), jnp.float32(ABSENT), book.path(jnp.int32(-1))),
        reserve=jnp.asarray(reserve, jnp.float32),
        max_ads=jnp.asarray(2**30 if max_ads is None else max_ads, jnp.int32),
        min_gap=jnp.asarray(min_gap, jnp.int32),
        token_bid=token_bid,
        scope=scope,
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` if a setting is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
