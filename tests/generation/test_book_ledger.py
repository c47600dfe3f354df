"""The ledger's books against loops over dicts, `inline_book` and fresh builds."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.amounts import LARGEST
from ega_jax.errors import UserError
from ega_jax.generation import book_ledger
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.generation.book_tree import capacity
from ega_jax.generation.inline_book import inline_book

NUM_POIS = 40
LAYER_FIELDS = "best", "best_ad", "second", "total", "count"
SIZES = (1, 6, 24, 40)  # Few, so that few shapes are compiled.


def random_listing(rng, num_layers=None, num_codes=None):
    """Arguments of a ledger: an uneven forest with equal bids, ads not shown and empty books."""
    n, num_books = rng.choice(SIZES), rng.integers(1, 5)
    cuts = np.sort(rng.integers(0, n + 1, num_books - 1))
    book_start = np.concatenate([[0], cuts, [n]])
    poi = [rng.permutation(NUM_POIS)[:size] for size in np.diff(book_start)]
    num_layers, num_codes = num_layers or rng.integers(1, 5), num_codes or rng.integers(1, 6)
    # A power of a uniform number is uneven: code 0 has most POIs.
    codes = num_codes * rng.random((NUM_POIS, num_layers)) ** rng.integers(1, 4)
    token_bid, scope = [("max", "prefix"), ("mean", "prefix"), ("max", "layer")][rng.integers(3)]
    listing = {
        "poi": np.concatenate(poi),
        "bid": random_bids(rng, n),
        "book_start": book_start,
        "poi_codes": codes.astype(int),
        "num_codes": int(num_codes),
        "num_slots": int(rng.integers(1, 3)),
        "search_bid": random_bids(rng, n) if rng.random() < 0.5 else None,
        "smoothing": None,
        "reserve": random_bids(rng, n) / 2 if rng.random() < 0.3 else None,
        "eligible": rng.random(n) < 0.8 if rng.random() < 0.5 else None,
        "token_bid": token_bid,
        "scope": scope,
    }
    if listing["search_bid"] is not None:
        listing["smoothing"] = rng.choice([0.0, 0.5, 1.0])
    return listing


def random_bids(rng, n):
    """Bids of which many are equal, or few."""
    return rng.integers(0, 4, n).astype(float) if rng.random() < 0.5 else rng.random(n)


def seen_bids(listing):
    """What the search sees of the bids of ads that may be shown."""
    bid, past = listing["bid"].astype(np.float32), listing["search_bid"]
    if past is None or listing["smoothing"] == 0:
        return bid
    past = past.astype(np.float32)
    return past if listing["smoothing"] == 1 else bid**0.5 * past**0.5


class Oracle:
    """A forest as dicts: nodes are tuples of the book and the codes."""

    def __init__(self, listing):
        n = len(listing["poi"])
        self.listing, self.depths = listing, listing["poi_codes"].shape[1] + 1
        seen = seen_bids(listing)
        shown = np.ones(n, bool) if listing["eligible"] is None else listing["eligible"]
        if listing["reserve"] is not None:
            shown = shown & (listing["bid"] >= listing["reserve"])
        self.search_bid = [np.float32(b) if e else -1.0 for b, e in zip(seen, shown, strict=True)]
        start = listing["book_start"]
        self.book = [b for b in range(len(start) - 1) for _ in range(start[b], start[b + 1])]
        self.ads = collections.defaultdict(list)
        self.by_bid = sorted(range(n), key=lambda ad: (-self.search_bid[ad], ad))
        for ad in self.by_bid:
            for depth in range(self.depths):
                self.ads[self.node(ad, depth)].append(ad)
        books = [(b,) for b in range(len(start) - 1)]
        self.nodes = [books] + [
            sorted(node for node in self.ads if len(node) == depth + 1)
            for depth in range(1, self.depths)
        ]
        sizes = [len(books)] + [capacity(len(nodes)) for nodes in self.nodes[1:]]
        self.first_node = [0, *itertools.accumulate(size + 1 for size in sizes)]

    def number(self, node):
        depth = len(node) - 1
        return self.first_node[depth] + self.nodes[depth].index(node)

    def node(self, ad, depth):
        codes = self.listing["poi_codes"][self.listing["poi"][ad]]
        return (self.book[ad], *codes[:depth].tolist())

    def children(self, node):
        return [v for v in self.nodes[len(node)] if v[:-1] == node]


def check(book, listing):
    """Compares every field of a book with the oracle, and what is unused with the documentation."""
    book, oracle, n = jax.tree.map(np.asarray, book), Oracle(listing), len(listing["poi"])
    assert book.poi[:n].tolist() == listing["poi"].tolist()
    assert set(book.poi[n:]) | set(book.leaf[n:]) | set(book.search_bid[n:]) <= {-1}
    np.testing.assert_array_equal(book.bid[:n], listing["bid"].astype(np.float32))
    assert book.search_bid[:n].tolist() == oracle.search_bid
    for found, given in ((book.given_bid, "search_bid"), (book.reserve, "reserve")):
        expected = np.zeros(n) if listing[given] is None else listing[given]
        np.testing.assert_array_equal(found[:n], expected.astype(np.float32))
    leaves = [oracle.number(oracle.node(ad, oracle.depths - 1)) for ad in range(n)]
    assert book.leaf[:n].tolist() == leaves
    by_poi = sorted(range(n), key=lambda ad: (oracle.book[ad], listing["poi"][ad]))
    assert book.by_poi[:n].tolist() == by_poi
    assert sorted(book.by_poi) == list(range(book.num_ads))
    assert book.book_start.tolist() == listing["book_start"].tolist()
    assert book.smoothing == (0 if listing["search_bid"] is None else listing["smoothing"])
    assert book.code.dtype == np.int16
    for name, values in fields_by_node(oracle).items():
        np.testing.assert_array_equal(getattr(book, name), values, err_msg=name)
    check_lists(book, oracle)
    check_totals(book, oracle)
    check_layer(book, oracle)


def fields_by_node(oracle):
    """The fields that have one entry per node, unused nodes included."""
    *_, inner, end = oracle.first_node
    code, best_bid, first_child = np.zeros(end), np.full(end, -1.0), np.zeros(inner)
    for depth, nodes in enumerate(oracle.nodes[1:], 1):
        child, (above, first) = oracle.first_node[depth], oracle.first_node[depth - 1 : depth + 1]
        for v, parent in enumerate(oracle.nodes[depth - 1], above):
            first_child[v] = child
            child += len(oracle.children(parent))
        first_child[above + len(oracle.nodes[depth - 1]) : first] = child
        for v, node in enumerate(nodes, first):
            code[v], best_bid[v] = node[-1], oracle.search_bid[oracle.ads[node][0]]
    return {"code": code, "best_bid": best_bid, "first_child": first_child}


def check_lists(book, oracle):
    *_, inner, end = oracle.first_node
    length = oracle.listing["num_slots"] + 1
    lists = [[-1] * length for _ in range(inner)]
    for node in itertools.chain(*oracle.nodes[1:-1]):
        lists[oracle.number(node)] = (oracle.ads[node] + [-1] * length)[:length]
    listed, start = list(itertools.chain(*lists)), list(range(0, inner * length, length))
    for leaf in oracle.nodes[-1]:
        start.append(len(listed))
        listed += oracle.ads[leaf]
    assert book.list_start.tolist() == start + [len(listed)] * (end - len(start))
    unused = book.num_ads - len(oracle.book)
    assert book.listed.tolist() == listed + [-1] * unused
    for depth, width in enumerate(book.widths):
        most = max(len(oracle.children(node)) for node in oracle.nodes[depth])
        assert most <= width < 2 * most


def check_totals(book, oracle):
    if oracle.listing["token_bid"] != "mean":
        assert book.total is None
        return
    expected = np.zeros((oracle.first_node[-1], 2))
    for node in itertools.chain(*oracle.nodes[1:]):
        shown = [bid for ad in oracle.ads[node] if (bid := oracle.search_bid[ad]) >= 0]
        expected[oracle.number(node)] = sum(shown), len(shown)
    np.testing.assert_allclose(book.total, expected, rtol=1e-6)


def check_layer(book, oracle):
    if oracle.listing["scope"] == "prefix":
        assert book.layer is None
        return
    bids = collections.defaultdict(list)
    for ad in (ad for ad in oracle.by_bid if oracle.search_bid[ad] >= 0):
        for depth, code in enumerate(oracle.node(ad, oracle.depths - 1)[1:]):
            bids[oracle.book[ad], depth, code].append((oracle.search_bid[ad], ad))
    expected = {name: np.zeros(book.layer.best.shape) for name in LAYER_FIELDS}
    expected["best_ad"] -= 1
    for place, found in bids.items():
        values = [bid for bid, _ in found]
        expected["best"][place], expected["best_ad"][place] = found[0]
        expected["second"][place] = values[1] if len(found) > 1 else 0
        expected["total"][place], expected["count"][place] = sum(values), len(found)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(book.layer, name), values, rtol=1e-6, err_msg=name)


def assert_same(book, other):
    """Compares two books field by field, with their shapes, types and widths."""
    assert jax.tree.structure(book) == jax.tree.structure(other)
    for (path, x), y in zip(jax.tree.leaves_with_path(book), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def copied(book):
    return jax.tree.map(np.array, book)


@pytest.mark.parametrize("seed", range(100))
def test_every_field_equals_loops_over_dicts(seed):
    listing = random_listing(np.random.default_rng(seed))
    check(BookLedger(**listing).book, listing)


@pytest.mark.parametrize(("num_layers", "num_codes"), [(30, 1024), (3, 1), (1, 1), (30, 2)])
def test_long_codes_and_books_of_one_leaf(num_layers, num_codes):
    for seed in range(5):
        listing = random_listing(np.random.default_rng(seed), num_layers, num_codes)
        check(BookLedger(**listing).book, listing)


@pytest.mark.parametrize("seed", range(10))
def test_any_changes_equal_a_fresh_build(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        listing = random_listing(rng)
        ledger, n = BookLedger(**listing), len(listing["poi"])
        shown = np.ones(n, bool) if listing["eligible"] is None else listing["eligible"]
        listing |= {"eligible": shown.copy(), "bid": listing["bid"].copy()}
        for _ in range(4):
            size = n if rng.random() < 0.2 else rng.integers(0, min(n, 6) + 1)
            ads, bid = rng.permutation(n)[:size], random_bids(rng, size)
            eligible = rng.random(size) < 0.7 if rng.random() < 0.3 else None
            if eligible is not None:
                listing["eligible"][ads] = eligible
            listing["bid"][ads] = bid
            if size == n and rng.random() < 0.5:
                ledger.replace(
                    listing["bid"], eligible=eligible if eligible is None else listing["eligible"]
                )
            else:
                ledger.update(ads, bid, eligible=eligible)
            assert_same(ledger.book, BookLedger(**listing).book)
        check(ledger.book, listing)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("token_bid", "scope"), [("max", "prefix"), ("mean", "prefix"), ("mean", "layer")]
)
def test_one_book_equals_the_book_of_a_request(smoothing, token_bid, scope):
    rng, n = np.random.default_rng(0), 24
    past = rng.random(n) if smoothing else np.zeros(n)
    listing = {
        "poi": rng.permutation(NUM_POIS)[:n],
        "bid": random_bids(rng, n),
        "book_start": np.array([0, n]),
        "poi_codes": rng.integers(0, 3, (NUM_POIS, 3)),
        "num_slots": 2,
        "search_bid": past,
        "smoothing": smoothing,
        "reserve": random_bids(rng, n) / 2,
        "eligible": rng.random(n) < 0.8,
    }
    options = {"num_codes": 3, "token_bid": token_bid, "scope": scope}
    expected = inline_book(
        jnp.array(listing["poi_codes"][listing["poi"]]),
        jnp.array(listing["poi"]),
        jnp.array(listing["bid"], jnp.float32),
        jnp.ones(n, bool),
        eligible=jnp.array(listing["eligible"]),
        reserve=jnp.array(listing["reserve"], jnp.float32),
        search_bid=jnp.array(past, jnp.float32),
        smoothing=smoothing,
        num_listed=3,
        **options,
    )
    oracle = Oracle(listing)
    num_nodes = [len(nodes) for nodes in oracle.nodes]
    first_node = [0, 2, n + 3, 2 * n + 4]
    expected = without_numbers(expected, first_node, num_nodes)
    book = without_numbers(BookLedger(**listing, **options).book, oracle.first_node, num_nodes)
    assert jax.tree.structure(expected) == jax.tree.structure(book)
    pairs = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(book), strict=True)
    for (path, x), y in pairs:
        np.testing.assert_allclose(x, y, rtol=1e-6, err_msg=jax.tree_util.keystr(path))


def without_numbers(book, first_node, num_nodes):
    """What a book of 24 ads holds, without unused entries and with nodes numbered in their depth.

    Args:
      book: the book.
      first_node: number of the first node of each depth.
      num_nodes: number of used nodes of each depth.
    """
    names = "poi", "bid", "search_bid", "by_poi"
    found = {name: getattr(book, name)[:24] for name in names}
    found |= {"book_start": book.book_start, "layer": book.layer, "smoothing": book.smoothing}
    found["leaf"] = book.leaf[:24] - first_node[3]
    for depth in range(4):
        nodes = first_node[depth] + jnp.arange(num_nodes[depth])
        if depth < 3:
            first, number = book.children(nodes)
            found["children", depth] = first - first_node[depth + 1], number
        if depth > 0:
            total = None if book.total is None else book.total[nodes]
            ads = book.first_ads(nodes, 3 if depth < 3 else 24)
            found["node", depth] = book.code[nodes], book.best_bid[nodes], total, ads
    return {str(name): value for name, value in found.items()}


def test_the_book_finds_its_ads_and_nodes():
    """The methods of `AdBook` look only at what is used."""
    listing = random_listing(np.random.default_rng(3), num_layers=3, num_codes=3)
    book, oracle = BookLedger(**listing).book, Oracle(listing)
    ads = range(len(listing["poi"]))
    nodes = np.array([[oracle.number(oracle.node(ad, d)) for d in range(4)] for ad in ads])
    np.testing.assert_array_equal(book.path(jnp.array(ads)), nodes[:, 1:])
    find = jax.vmap(lambda poi, root: book.ads_of(poi[None], root)[0])
    assert find(jnp.array(listing["poi"]), jnp.array(oracle.book)).tolist() == list(ads)
    for depth in range(3):
        code, node = [oracle.node(a, 3)[depth + 1] for a in ads], jnp.array(nodes[:, depth])
        place, exists = book.find_child(node, jnp.array(code))
        assert exists.all()
        np.testing.assert_array_equal(book.children(node)[0] + place, nodes[:, depth + 1])


def test_a_refreshed_listing_of_similar_size_has_the_same_shapes():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (1000, 3))
    books = [
        BookLedger(
            rng.permutation(1000)[:n], np.ones(n), [0, n // 2, n], codes, 4, num_slots=2
        ).book
        for n in (900, 950, 1000)
    ]
    for book in books[1:]:
        assert jax.tree.structure(book) == jax.tree.structure(books[0])
        assert jax.tree.map(jnp.shape, book) == jax.tree.map(jnp.shape, books[0])
    assert books[0].num_ads == 1024
    assert books[0].widths == (4, 4, 4)


@pytest.mark.parametrize(("num_codes", "dtype"), [(1 << 15, jnp.int16), ((1 << 15) + 1, jnp.int32)])
def test_codes_use_16_bits_where_they_fit(num_codes, dtype):
    codes = [[num_codes - 1, 0], [0, 1]]
    book = BookLedger([0, 1], [1.0, 2.0], [0, 2], codes, num_codes, num_slots=1).book
    assert book.code.dtype == dtype
    assert book.code[book.path(jnp.array([0, 1]))].tolist() == codes


def an_ledger(**changes):
    listing = {
        "poi": np.array([2, 0, 1, 0]),
        "bid": np.array([1.0, 4.0, 2.0, 3.0]),
        "book_start": np.array([0, 3, 3, 4]),
        "poi_codes": np.array([[0, 1], [0, 0], [1, 1]]),
        "num_codes": 2,
        "num_slots": 1,
    }
    return BookLedger(**(listing | changes))


def test_an_update_changes_the_arrays_in_place():
    ledger = an_ledger()
    before = ledger.book
    names = "bid", "search_bid", "listed", "best_bid"
    places = [getattr(before, name).unsafe_buffer_pointer() for name in names]
    ledger.update([0], [9.0])
    after = ledger.book
    assert places == [getattr(after, name).unsafe_buffer_pointer() for name in names]
    assert all(getattr(before, name).is_deleted() for name in names)
    assert after.leaf is before.leaf
    assert after.first_child is before.first_child


def test_numbers_of_changes_are_compiled_once_per_power_of_two():
    ledger = an_ledger()
    ledger.update([0], [9.0])
    compiled = book_ledger._set_rows._cache_size()
    ledger.update([0, 1, 2], [3.0, 2.0, 1.0])
    ledger.update([2], [8.0])
    assert book_ledger._set_rows._cache_size() == compiled


def test_a_replaced_book_stays_valid_and_shares_no_memory_with_its_input():
    bid = np.array([1.0, 4.0, 2.0, 3.0], np.float32)
    ledger = an_ledger(bid=bid)
    before, values = ledger.book, copied(ledger.book)
    bid[:] = 0
    ledger.replace([5.0, 6.0, 7.0, 8.0])
    assert_same(before, values)
    assert ledger.book.bid[:4].tolist() == [5, 6, 7, 8]


def test_a_held_view_of_the_bids_keeps_its_values():
    ledger = an_ledger()
    view = np.asarray(ledger.book.bid)
    ledger.update([0], [9.0])
    assert view[:4].tolist() == [1, 4, 2, 3]
    assert ledger.book.bid[:4].tolist() == [9, 4, 2, 3]


def test_live_bids_do_not_change_what_another_search_bid_orders():
    ledger = an_ledger(search_bid=np.zeros(4))
    before = copied(ledger.book)
    ledger.update([1, 3], [7.0, 0.0])
    assert_same(ledger.book.replace(bid=before.bid), before)
    ledger.replace([9.0, 8.0, 7.0, 6.0])
    assert_same(ledger.book.replace(bid=before.bid), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poi": []}, "no ad"),
        ({"poi": [2, 0, 3, 0]}, "ad 2 is of POI 3, which is not one of the 3"),
        ({"poi": [2, 0, -1, 0]}, "ad 2 is of POI -1"),
        ({"poi": [2, 0, 2, 0]}, "book 0 lists POI 2 twice: as ad 0 and as ad 2"),
        ({"poi": [2.0, 0.0, 1.0, 0.0]}, "poi has the shape"),
        ({"bid": [1.0, -1.0, 2.0, -3.0]}, "bid of ad 1 is -1"),
        ({"bid": [1.0, 2.0, np.nan, 3.0]}, "bid of ad 2 is nan"),
        ({"bid": [1.0, 2.0, 3.0, 2 * LARGEST]}, "bid of ad 3 is 2e"),
        ({"bid": [1.0, 2.0]}, "4 ads have bids of shape"),
        ({"search_bid": [1.0, 2.0, -1.0, 0.0]}, "search bid of ad 2 is -1"),
        ({"search_bid": [1.0]}, "4 ads have search bids of shape"),
        ({"smoothing": 0.5}, r"smoothing is 0\.5: give the search_bid"),
        ({"smoothing": 1.5, "search_bid": [0.0] * 4}, r"smoothing is 1\.5: it must be from 0 to 1"),
        ({"smoothing": np.nan, "search_bid": [0.0] * 4}, "smoothing is nan"),
        ({"eligible": [True]}, "`eligible` of 4 ads"),
        ({"eligible": [1, 0, 1, 1]}, "`eligible` of 4 ads"),
        ({"book_start": []}, "book_start"),
        ({"book_start": [0, 3]}, "book_start goes from 0 to the number of ads, 4"),
        ({"book_start": [0, 3, 2, 4]}, "book 1 ends at ad 2, before it starts"),
        ({"poi_codes": [[0, 1], [0, 2], [1, 1]]}, "POI 1 has the codes"),
        ({"poi_codes": [0, 1, 1]}, "poi_codes has the shape"),
        ({"num_slots": 1 << 30}, "the book's lists have .* entries, more than int32 can count"),
    ],
)
def test_a_wrong_listing_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        an_ledger(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.update([0, 4], [1.0, 2.0]), "ad 4 is not one of the 4 ads"),
        (lambda x: x.update([-1], [1.0]), "ad -1 is not"),
        (lambda x: x.update([1, 3, 1], [1.0, 2.0, 3.0]), "ad 1 is given twice"),
        (lambda x: x.update([3, 2], [1.0, np.nan]), "bid of ad 2 is nan"),
        (lambda x: x.update([3, 2], [1.0]), "2 ads have bids"),
        (lambda x: x.update([0.0], [1.0]), "ads has the shape"),
        (lambda x: x.update([3], [1.0], eligible=[True, False]), "`eligible` of 1 ads"),
        (lambda x: x.replace([1.0, 2.0, 3.0, -4.0]), "bid of ad 3 is -4"),
        (lambda x: x.replace([1.0]), "4 ads have bids"),
        (lambda x: x.replace(np.ones(4), eligible=[True]), "`eligible` of 4 ads"),
    ],
)
def test_a_wrong_change_is_named_and_changes_nothing(change, message):
    ledger = an_ledger()
    before = copied(ledger.book)
    with pytest.raises(UserError, match=message):
        change(ledger)
    assert_same(ledger.book, before)
    ledger.update([0], [2.5])
    assert_same(ledger.book, an_ledger(bid=np.array([2.5, 4.0, 2.0, 3.0])).book)
