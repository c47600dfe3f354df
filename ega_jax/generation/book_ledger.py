"""The host's record of a forest of ad books, which builds the `AdBook` and refreshes its bids."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ega_jax.generation import book_checks, book_sums
from ega_jax.generation.ad_book import UNAVAILABLE, AdBook
from ega_jax.generation.book_lists import BookLists
from ega_jax.generation.book_tree import BookTree, build_tree, padded

FIELDS_OF_TREE = "poi", "leaf", "first_child", "code", "list_start", "by_poi", "book_start"
LEAST_CHANGES = 256  # Fewer changes are padded to it, so that fewer sizes are compiled.


class BookLedger:
    """Builds a forest of ad books and keeps it up to date when bids change.

    What no bid changes is built once: the tree of codes, the codes and the POIs. The host keeps its
    own copy of what bids change, about 15 bytes per ad. On a CPU, it shares the rest with the
    device.

    Ads are numbered as listed. Capacities are padded to a multiple of an eighth of the next power
    of two, and widths to a power of two, so that the book of a new listing of about the same size
    has the same shapes. Only the number of books is exact.

    Examples:
      >>> ledger = BookLedger(  # Two books: of the POIs 2 and 0, and of the POI 2.
      ...     poi=[2, 0, 2],
      ...     bid=[1.0, 3.0, 2.0],
      ...     book_start=[0, 2, 3],
      ...     poi_codes=[[0, 1], [1, 0], [0, 1]],
      ...     num_codes=2,
      ...     num_slots=1,
      ... )
      >>> ledger.book.first_ads(ledger.book.leaf[0], 2).tolist()  # POIs 2 and 0 share codes.
      [1, 0]
      >>> ledger.update(ads=[0], bid=[4.0])
      >>> ledger.book.first_ads(ledger.book.leaf[0], 2).tolist()
      [0, 1]
    """

    def __init__(
        self,
        poi: ArrayLike,
        bid: ArrayLike,
        book_start: ArrayLike,
        poi_codes: ArrayLike,
        num_codes: int,
        *,
        num_slots: int,
        search_bid: ArrayLike | None = None,
        smoothing: float | None = None,
        reserve: ArrayLike | None = None,
        eligible: ArrayLike | None = None,
        token_bid: str = "max",
        scope: str = "prefix",
    ):
        """Builds the forest.

        Args:
          poi: `[n]` integer POIs; those of a book are consecutive, and no book has a POI twice.
          bid: `[n]` live bids, currency per click.
          book_start: `[books + 1]` integers; book v has the ads `book_start[v]` to
            `book_start[v + 1]`, which may be none.
          poi_codes: `[P, C]` integer codes of the POIs.
          num_codes: `W`.
          num_slots: `K`; lists above the leaves hold `K + 1` ads.
          search_bid: `[n]` bids that the search sees, such as past ones; by default it sees the
            live bids.
          smoothing: from 0 to 1, weight of `search_bid`, by default 1; below 1 the search sees
            `bid^(1 - smoothing) * search_bid^smoothing`.
          reserve: `[n]` least bid and price of each ad; it is not shown while it bids less. By
            default 0.
          eligible: `[n]` bool, whether the ad may be shown; by default all may.
          token_bid: "max" or "mean".
          scope: "prefix" or "layer".

        Raises:
          UserError: there is no ad, lengths do not match, a bid or reserve is no amount, a POI or
            code is out of range or repeated (names the first such ad), or `smoothing` is out of
            range or without `search_bid`.
        """
        poi, book_start = book_checks.listing(poi, book_start, poi_codes, num_codes)
        bid = book_checks.amounts("bid", bid, poi.size)
        self._given, self._smoothing = np.zeros_like(bid), book_checks.weight(smoothing, search_bid)
        if search_bid is not None:
            self._given = book_checks.amounts("search bid", search_bid, poi.size)
        self._reserve = np.zeros_like(bid)
        if reserve is not None:
            self._reserve = book_checks.amounts("reserve", reserve, poi.size)
        self._eligible = np.ones(poi.size, bool)
        if eligible is not None:
            self._eligible = book_checks.marks(eligible, poi.size).copy()
        tree, order = build_tree(poi, book_start, np.asarray(poi_codes), num_codes, num_slots + 1)
        device = jax.tree.map(jnp.array, tree)
        tree = jax.tree.map(np.asarray, device)  # On a CPU, views and no copies.
        self._num_ads, self._num_codes = poi.size, num_codes
        self._token_bid, self._scope = token_bid, scope
        search_bids = self._search_bids(slice(poi.size), bid, self._eligible)
        self._lists = BookLists(tree, order, search_bids)
        self._book = self._new_book(device, bid)

    @property
    def book(self) -> AdBook:
        """The forest with the present bids, on device.

        `update` reuses its memory: take the book again after it. A NumPy view of the book's bids or
        lists that is still held makes the next update on a CPU copy them, which is slower.
        """
        return self._book

    def replace(self, bid: ArrayLike, *, eligible: ArrayLike | None = None) -> None:
        """Replaces all live bids. The former book stays valid until the next `update`.

        Args:
          bid: `[n]` live bids.
          eligible: `[n]` bool, whether the ad may be shown; by default as before.

        Raises:
          UserError: as for the constructor; then nothing has changed.
        """
        bid = book_checks.amounts("bid", bid, self._num_ads)
        if eligible is not None:
            self._eligible = book_checks.marks(eligible, self._num_ads).copy()
        search_bid = self._search_bids(slice(self._num_ads), bid, self._eligible)
        live = self._amounts(bid)
        if np.array_equal(search_bid, self._lists.search_bid[: self._num_ads]):
            self._book = dataclasses.replace(self._book, bid=live)
            return
        self._lists.reset(search_bid)
        self._book = dataclasses.replace(self._book, bid=live, **self._orders(), **self._sums())

    def update(self, ads: ArrayLike, bid: ArrayLike, *, eligible: ArrayLike | None = None) -> None:
        """Changes some live bids. The former book must not be used any more.

        The device changes its arrays in place. Numbers of changes are padded to powers of two, so
        an update compiles only for the first of about as many changes.

        Args:
          ads: `[m]` integer ads, no ad twice.
          bid: `[m]` their live bids.
          eligible: `[m]` bool, whether they may be shown; by default as before.

        Raises:
          UserError: an ad is out of range or repeated, a bid is no amount, or lengths do not match;
            names the first such ad. Then nothing has changed.
        """
        ads = book_checks.ads(ads, self._num_ads)
        bid = book_checks.amounts("bid", bid, ads.size, ads)
        if eligible is not None:
            self._eligible[ads] = book_checks.marks(eligible, ads.size)
        search_bid = self._search_bids(ads, bid, self._eligible[ads])
        changes = self._lists.change(ads, search_bid)
        places, nodes = changes.places, changes.nodes
        lists, book = self._lists, self._book
        self._book = dataclasses.replace(
            book,
            bid=_scattered(book.bid, ads, bid),
            search_bid=_scattered(book.search_bid, ads, search_bid),
            listed=_scattered(book.listed, places, lists.listed[places]),
            best_bid=_scattered(book.best_bid, nodes, lists.highest(nodes)),
        )
        if nodes.size:
            self._book = dataclasses.replace(self._book, **self._sums())

    def _search_bids(
        self, ads: np.ndarray | slice, bid: np.ndarray, eligible: np.ndarray
    ) -> np.ndarray:
        """Search bids of ads with new live bids, float32."""
        given, weight = self._given[ads], self._smoothing
        seen = bid if weight == 0 else given
        if 0 < weight < 1:  # As `ad_book.smoothed`, which would compile for each number of ads.
            seen = bid ** (1 - weight) * given**weight
        return np.where(eligible & (bid >= self._reserve[ads]), seen, np.float32(UNAVAILABLE))

    def _new_book(self, tree: BookTree, bid: np.ndarray) -> AdBook:
        """The book of the present lists and live bids, given the tree on device."""
        return AdBook(
            **{name: getattr(tree, name) for name in FIELDS_OF_TREE},
            widths=tree.widths,
            largest=tree.largest,
            bid=self._amounts(bid),
            given_bid=self._amounts(self._given),
            reserve=self._amounts(self._reserve),
            smoothing=jnp.float32(self._smoothing),
            **self._orders(),
            **self._sums(),
        )

    def _amounts(self, amounts: np.ndarray) -> jax.Array:
        """Amounts of all ads on device; 0 for unused entries."""
        return jnp.array(padded(amounts, self._lists.search_bid.size, 0.0))

    def _orders(self) -> dict[str, Any]:
        """Copies on device of what search bids change, but for the sums."""
        return {
            "search_bid": jnp.array(self._lists.search_bid),
            "listed": jnp.array(self._lists.listed),
            "best_bid": jnp.array(self._lists.all_highest()),
        }

    def _sums(self) -> dict[str, Any]:
        """The sums that the token bid needs, on device."""
        is_layer, is_mean = self._scope == "layer", self._token_bid == "mean"
        totals = book_sums.node_totals(self._lists) if is_mean and not is_layer else None
        return {
            "total": None if totals is None else jnp.array(totals),
            "layer": book_sums.layer_bids(self._lists, self._num_codes) if is_layer else None,
        }


def _scattered(array: jax.Array, index: np.ndarray, values: np.ndarray) -> jax.Array:
    """Sets rows of a device array in place."""
    if not index.size:
        return array
    size = max(LEAST_CHANGES, 1 << (index.size - 1).bit_length())
    # JAX drops what is set beyond the last row.
    index = padded(index.astype(np.int32), size, array.shape[0])
    return _set_rows(array, index, padded(values, size, 0))


@functools.partial(jax.jit, donate_argnums=0)
def _set_rows(array: jax.Array, index: jax.Array, values: jax.Array) -> jax.Array:
    """Sets `array[index]`, in the array's own memory."""
    return array.at[index].set(values, mode="drop")
