"""What may come next in a slate: the children of a prefix, and what they are worth.

A search asks its candidates two things: which codes may follow a prefix given the items the
beam already holds, with the bid each code carries (sec. 4.3.1), and which item a full code
stands for. Two answers exist. `RequestCandidates` knows a few thousand items and obeys the
rules of a slate: an item is used once, organic items keep their upstream order.
`catalogue_candidates.CatalogueCandidates` knows millions of items and finds a single one.
"""

from typing import Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.generation.bidding import SCOPES, TOKEN_BIDS, code_bids, run_means
from ega_jax.quantization.prefix_index import RequestIndex, request_index


@struct.dataclass
class Options:
    """The codes that may follow the prefixes of `S` beams, `F` places for each."""

    node: jax.Array  # [S, F] int32 node that the code leads to.
    code: jax.Array  # [S, F] int32.
    bid: jax.Array  # [S, F] float32 the token's bid, currency per click.
    where: jax.Array  # [S, F] bool.


class Candidates(Protocol):
    """What the beam search asks of candidates."""

    def options(self, depth: int, node: jax.Array, chosen: jax.Array) -> Options:
        """Codes that may follow nodes `[S]` of a static depth for beams holding `chosen [S, K]`."""
        ...

    def item(self, leaf: jax.Array) -> jax.Array:
        """Item `[S]` int32 that the last chosen nodes `[S]` stand for, -1 for no node."""
        ...


@struct.dataclass
class RequestCandidates:
    """The candidates of one request, indexed for a search under the rules of a slate.

    A child of a prefix is represented by its best available item: the highest-bidding ad not
    yet in the slate, else the next organic item. At the last depth it is the item the code stands
    for, and its bid is the highest of the child. Rows of the index are sorted so that within a
    child ads come first, by falling bid.
    """

    index: RequestIndex
    is_ad: jax.Array  # [N] bool by candidate.
    bid: jax.Array  # [N] float32 by candidate, 0 for organic items.
    token_bid: jax.Array  # [C, N] float32 by row, the bid of its code while its item stands for it.
    organic: jax.Array  # [N + 1] int32 candidates in upstream order, -1 after the last.
    num_ads: jax.Array  # [C, N] int32 by row, the ads in the child that holds the row.
    max_ads: jax.Array  # [] int32 most ads in a slate.
    min_gap: jax.Array  # [] int32 fewest organic items between two ads.
    prefix_means: bool = struct.field(pytree_node=False)  # Bids are means, not `token_bid`.

    def options(self, depth: chex.Numeric, node: jax.Array, chosen: jax.Array) -> Options:
        """Codes that may follow, `F = N` at every depth; see `Candidates`."""
        # A child is offered through one row: that of the item that represents it. So the rows of a
        # node that are nobody's best are masked out, and no code is offered twice.
        row = self._all_rows()
        low, high = self.index.span(depth, node)
        within = (row >= low[:, None]) & (row < high[:, None])
        best = self._best_ads(depth, chosen) | (row == self._best_organic(depth, chosen)[:, None])
        bid = self._mean_bids(depth, chosen) if self.prefix_means else self.token_bid[depth]
        return Options(
            node=jnp.broadcast_to(row, within.shape),
            code=jnp.broadcast_to(self.index.code[depth], within.shape),
            bid=jnp.broadcast_to(bid, within.shape),
            where=within & best,
        )

    def item(self, leaf: jax.Array) -> jax.Array:
        """Candidate that a node of depth `C` stands for; see `Candidates`."""
        return jnp.where(leaf >= 0, self.index.order[-1][leaf], -1)

    def node(self, depth: int, items: jax.Array) -> jax.Array:
        """Node `[...]` int32 of a static depth that holds candidates `[...]`, -1 for none."""
        node = jnp.zeros_like(items) if depth == 0 else self.index.row[depth - 1][items]
        return jnp.where(items >= 0, node, -1)

    def codes(self, items: jax.Array) -> jax.Array:
        """Codes `[..., C]` of candidates `[...]`, 0 for none."""
        layers = zip(self.index.code, self.index.row, strict=True)
        codes = jnp.stack([code[row[items]] for code, row in layers], axis=-1)
        return jnp.where(items[..., None] >= 0, codes, 0)

    def _all_rows(self) -> jax.Array:
        """`[N]` int32."""
        return jnp.arange(self.is_ad.shape[0], dtype=jnp.int32)

    def _ads(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """`[S, N]` bool by row: the ads that a beam may still use."""
        row = self._all_rows()
        is_taken = jnp.any(self._rows(depth, chosen)[:, :, None] == row, axis=1)
        is_ad = self.is_ad[self.index.order[depth]] & (row < self.index.num_items)
        return is_ad & ~is_taken & self._ads_allowed(chosen)[:, None]

    def _best_ads(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """`[S, N]` bool by row: the highest-bidding ad of its child that a beam may still use."""
        # Ads of a child stand by falling bid from `low` on, and a beam takes the best one first. So
        # the best unused ad is the one that has as many taken ads above it as rows.
        row, low = self._all_rows(), self.index.low[depth]
        taken = self._rows(depth, chosen)[:, :, None]
        above = jnp.sum((taken >= low) & (taken < row), axis=1)
        return self._ads(depth, chosen) & (above == row - low)

    def _next_organic(self, depth: chex.Numeric, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next organic item `[S]` as candidate, -1 where none is left, and its row."""
        # Organic items keep their order, so the number shown is the place of the next one; the
        # queue is one longer than there are candidates, and ends in -1.
        shown = (chosen >= 0) & ~self.is_ad[chosen]
        candidate = self.organic[shown.sum(-1)]
        return candidate, self.index.row[depth][candidate]

    def _best_organic(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """Row `[S]` of the next organic item where no ad of its child goes before it, else -1."""
        # Two rows are in the same child where their children start at the same row. The child
        # has unused ads while fewer of its ads are taken than it holds.
        candidate, row = self._next_organic(depth, chosen)
        low = self.index.low[depth]
        taken = self._rows(depth, chosen)
        same = (taken >= 0) & self.is_ad[chosen] & (low[taken] == low[row][:, None])
        ads_left = self._ads_allowed(chosen) & (same.sum(-1) < self.num_ads[depth][row])
        return jnp.where((candidate >= 0) & ~ads_left, row, -1)

    def _mean_bids(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """`[S, N]` by row: the mean bid of what a beam may still use of the row's child."""
        candidate, row = self._next_organic(depth, chosen)
        is_next = self._all_rows() == jnp.where(candidate >= 0, row, -1)[:, None]
        bid = self.bid[self.index.order[depth]]
        available = self._ads(depth, chosen) | is_next
        return run_means(bid, available, self.index.low[depth])

    def _rows(self, depth: chex.Numeric, chosen: jax.Array) -> jax.Array:
        """Rows `[S, K]` of the chosen candidates, -1 where none."""
        return jnp.where(chosen >= 0, self.index.row[depth][chosen], -1)

    def _ads_allowed(self, chosen: jax.Array) -> jax.Array:
        """`[S]` bool, the limits let a beam take an ad in its next slot."""
        is_ad = (chosen >= 0) & self.is_ad[chosen]
        slot = jnp.arange(chosen.shape[1], dtype=jnp.int32)
        last = jnp.max(jnp.where(is_ad, slot, -1), axis=-1)
        gap = (chosen >= 0).sum(-1) - last - 1
        return (is_ad.sum(-1) < self.max_ads) & ((last < 0) | (gap >= self.min_gap))


def organic_queue(is_organic: jax.Array) -> jax.Array:
    """Organic candidates `[N]` int32 in upstream order, -1 after the last, of `[N]` bool."""
    order = jnp.argsort(~is_organic, stable=True).astype(jnp.int32)
    return jnp.where(is_organic[order], order, -1)


def request_candidates(
    codes: jax.Array,
    is_ad: jax.Array,
    bid: jax.Array,
    where: jax.Array,
    *,
    max_ads: chex.Numeric | None = None,
    min_gap: chex.Numeric = 0,
    token_bid: str = "max",
    scope: str = "prefix",
) -> RequestCandidates:
    """Indexes the candidates of one request on device; `vmap` it over requests.

    Args:
      codes: `[N, C]` int32 codes of the candidates.
      is_ad: `[N]` bool.
      bid: `[N]` float32 bids in currency per click, at least 0; ignored for organic items.
      where: `[N]` bool, the candidate exists and may be shown.
      max_ads: most ads in one slate; no limit by default.
      min_gap: fewest organic items between two ads.
      token_bid: how items' bids make that of a token, "max" or "mean"; static.
      scope: which items count, static: "prefix", those under the prefix decoded so far that the
        beam may still use, or "layer", all with the code at that layer.

    Returns:
      The indexed candidates; shapes depend on `N` and `C` only.

    Raises:
      ValueError: `token_bid` or `scope` is not one of these.
    """
    _check_choice("token_bid", token_bid, TOKEN_BIDS)
    _check_choice("scope", scope, SCOPES)
    n, c = codes.shape
    bid = jnp.where(is_ad, bid, 0.0).astype(jnp.float32)
    index = request_index(codes, where, priority=jnp.where(is_ad, bid, -1.0))
    # Ads of a child: those before its end less those before its first row, by layer.
    ads_before = jnp.cumsum((is_ad & where)[index.order], axis=1, dtype=jnp.int32)
    ads_before = jnp.concatenate([jnp.zeros((c, 1), jnp.int32), ads_before], axis=1)
    num_ads = jnp.take_along_axis(ads_before, index.end, axis=1) - jnp.take_along_axis(
        ads_before, index.low, axis=1
    )
    by_candidate = (
        code_bids(codes, bid, where, token_bid)
        if scope == "layer"
        else jnp.broadcast_to(bid, (c, n))
    )
    return RequestCandidates(
        index=index,
        is_ad=is_ad,
        bid=bid,
        token_bid=jnp.take_along_axis(by_candidate, index.order, axis=1),
        organic=jnp.append(organic_queue(where & ~is_ad), -1),
        num_ads=num_ads,
        max_ads=jnp.asarray(n if max_ads is None else max_ads, jnp.int32),
        min_gap=jnp.asarray(min_gap, jnp.int32),
        prefix_means=scope == "prefix" and token_bid == "mean",
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a setting that is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
