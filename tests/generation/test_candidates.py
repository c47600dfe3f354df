"""Which codes may follow, what they are worth, and which items they stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.generation.candidates import request_candidates
from ega_jax.generation.catalogue_candidates import catalogue_candidates
from ega_jax.quantization.prefix_index import catalogue_index

K, C = 3, 2
CODES = np.array([[0, 0], [0, 1], [0, 0], [1, 0], [1, 0], [2, 1]], np.int32)
IS_AD = np.array([True, True, False, True, False, True])
BID = np.array([2.0, 5.0, 7.0, 1.0, 0.0, 5.0], np.float32)  # organic item 2 cannot bid.
ALL = np.ones(6, bool)
PREPARE = jax.jit(request_candidates, static_argnames=("token_bid", "scope"))


def paths(candidates, chosen):
    """`{(code, code): (bids on the way, item)}` that a beam holding `chosen` may take next."""
    padded = np.full((1, K), -1, np.int32)
    padded[0, : len(chosen)] = chosen
    found = {}

    def walk(depth, node, codes, bids):
        if depth == C:
            item = int(candidates.item(jnp.array([node]))[0])
            found[codes] = (bids, item)
            return
        options = candidates.options(depth, jnp.array([node]), jnp.asarray(padded))
        for place in np.flatnonzero(options.where[0]):
            code, bid = int(options.code[0, place]), float(options.bid[0, place])
            walk(depth + 1, int(options.node[0, place]), (*codes, code), (*bids, bid))

    walk(0, 0, (), ())
    return found


def items(candidates, chosen):
    return sorted(item for _, item in paths(candidates, chosen).values())


def test_a_code_carries_the_highest_bid_below_it():
    assert paths(PREPARE(CODES, IS_AD, BID, ALL), []) == {
        (0, 0): ((5.0, 2.0), 0),
        (0, 1): ((5.0, 5.0), 1),
        (1, 0): ((1.0, 1.0), 3),
        (2, 1): ((5.0, 5.0), 5),
    }


def test_what_is_used_gives_way_to_the_next():
    """Without ad 0 its leaf falls to organic item 2, whose bid is ignored."""
    after = paths(PREPARE(CODES, IS_AD, BID, ALL), [0, 1])
    assert after == {
        (0, 0): ((0.0, 0.0), 2),
        (1, 0): ((1.0, 1.0), 3),
        (2, 1): ((5.0, 5.0), 5),
    }


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        # Under code 0: ads 0 (bid 2) and 1 (bid 5), the next organic item 2; item 4 must wait.
        (
            [],
            {
                (0, 0): ((7 / 3, 2 / 2), 0),
                (0, 1): ((7 / 3, 5.0), 1),
                (1, 0): ((1.0, 1.0), 3),
                (2, 1): ((5.0, 5.0), 5),
            },
        ),
        # Ad 0 is used: its leaf falls to the organic item.
        (
            [0],
            {
                (0, 0): ((2.5, 0.0), 2),
                (0, 1): ((2.5, 5.0), 1),
                (1, 0): ((1.0, 1.0), 3),
                (2, 1): ((5.0, 5.0), 5),
            },
        ),
        # Item 4 is next: it halves the bid of ad 3, whose codes it shares.
        (
            [2, 0],
            {(0, 1): ((5.0, 5.0), 1), (1, 0): ((0.5, 0.5), 3), (2, 1): ((5.0, 5.0), 5)},
        ),
    ],
)
def test_means_are_over_what_a_beam_may_still_use(chosen, expected):
    candidates = PREPARE(CODES, IS_AD, BID, ALL, token_bid="mean")
    assert paths(candidates, chosen) == {
        codes: (pytest.approx(bids), item) for codes, (bids, item) in expected.items()
    }


def test_where_no_ad_is_allowed_only_organic_items_count_in_a_mean():
    candidates = PREPARE(CODES, IS_AD, BID, ALL, max_ads=1, token_bid="mean")
    assert paths(candidates, [0]) == {(0, 0): ((0.0, 0.0), 2)}


@pytest.mark.parametrize(
    ("token_bid", "first", "second"),
    [("max", (5.0, 1.0, 5.0), (2.0, 5.0)), ("mean", (7 / 3, 0.5, 5.0), (0.75, 5.0))],
)
@pytest.mark.parametrize("chosen", [[], [0], [2]])
def test_a_layer_bids_alike_under_every_prefix_and_for_every_beam(token_bid, first, second, chosen):
    """By code: of items 0 to 2, of 3 and 4, of 5; in layer two of 0, 2, 3 and 4, of 1 and 5."""
    candidates = PREPARE(CODES, IS_AD, BID, ALL, token_bid=token_bid, scope="layer")
    found = paths(candidates, chosen)
    assert len(found) >= 4
    for codes, (bids, _) in found.items():
        assert bids == pytest.approx((first[codes[0]], second[codes[1]]))


@pytest.mark.parametrize("scope", ["prefix", "layer"])
@pytest.mark.parametrize("token_bid", ["max", "mean"])
def test_how_tokens_bid_changes_no_item(token_bid, scope):
    candidates = PREPARE(CODES, IS_AD, BID, ALL, token_bid=token_bid, scope=scope)
    for chosen in ([], [0], [2, 0], [1, 5]):
        expected = {
            codes: item
            for codes, (_, item) in paths(PREPARE(CODES, IS_AD, BID, ALL), chosen).items()
        }
        assert {codes: item for codes, (_, item) in paths(candidates, chosen).items()} == expected


@pytest.mark.parametrize("scope", ["prefix", "layer"])
def test_padding_counts_in_no_mean(scope):
    kept = np.array([True, False, True, True, True, False])
    padded = paths(PREPARE(CODES, IS_AD, BID, kept, token_bid="mean", scope=scope), [])
    shorter = PREPARE(CODES[kept], IS_AD[kept], BID[kept], ALL[kept], token_bid="mean", scope=scope)
    assert {codes: bids for codes, (bids, _) in padded.items()} == {
        codes: pytest.approx(bids) for codes, (bids, _) in paths(shorter, []).items()
    }


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"token_bid": "median"}, "'median' is not one of max, mean"),
        ({"scope": "item"}, "'item' is not one of prefix, layer"),
    ],
)
def test_unknown_ways_to_bid_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        request_candidates(CODES, IS_AD, BID, ALL, **choice)


def test_candidates_know_their_codes_and_nodes():
    candidates = PREPARE(CODES, IS_AD, BID, ALL)
    chosen = jnp.array([5, -1, 0, 3])
    np.testing.assert_array_equal(candidates.codes(chosen), [[2, 1], [0, 0], [0, 0], [1, 0]])
    for depth in range(C + 1):
        nodes = candidates.node(depth, chosen)
        assert nodes[1] == -1
        for item, node in zip(chosen.tolist(), nodes.tolist(), strict=True):
            if item >= 0:
                low, end = (int(x) for x in candidates.index.span(depth, jnp.array(node)))
                under = np.asarray(candidates.index.order[depth - 1 if depth else 0][low:end])
                same = (CODES[:, :depth] == CODES[item, :depth]).all(-1)
                assert sorted(under.tolist()) == np.flatnonzero(same).tolist()


def test_organic_items_come_in_upstream_order():
    candidates = PREPARE(CODES, IS_AD, BID, ALL, max_ads=0)
    assert items(candidates, []) == [2]
    assert items(candidates, [2]) == [4]
    assert items(candidates, [2, 4]) == []


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [([], [0, 1, 3, 5]), ([0], [1, 2, 3, 5]), ([0, 1], [2]), ([2, 0], [1, 3, 5])],
)
def test_no_more_ads_than_the_limit(chosen, expected):
    assert items(PREPARE(CODES, IS_AD, BID, ALL, max_ads=2), chosen) == expected


@pytest.mark.parametrize(
    ("min_gap", "chosen", "expected"),
    [
        (1, [], [0, 1, 3, 5]),
        (1, [0], [2]),
        (1, [0, 2], [1, 3, 5]),
        (2, [0, 2], [4]),
        (2, [2], [0, 1, 3, 5]),
    ],
)
def test_ads_keep_their_distance(min_gap, chosen, expected):
    assert items(PREPARE(CODES, IS_AD, BID, ALL, min_gap=min_gap), chosen) == expected


@pytest.mark.parametrize("hidden", range(6))
def test_padding_is_as_if_it_were_not_there(hidden):
    kept = np.arange(6) != hidden
    padded = paths(PREPARE(CODES, IS_AD, BID, kept), [])
    shorter = paths(PREPARE(CODES[kept], IS_AD[kept], BID[kept], ALL[kept]), [])
    assert padded == {
        codes: (bids, int(np.flatnonzero(kept)[item])) for codes, (bids, item) in shorter.items()
    }


def test_nobody_there_offers_nothing():
    candidates = PREPARE(CODES, IS_AD, BID, ~ALL)
    assert items(candidates, []) == []
    assert candidates.item(jnp.array([-1])).tolist() == [-1]


def test_equal_bids_fall_to_the_first_candidate():
    same, ads = np.zeros((6, C), np.int32), ALL
    candidates = PREPARE(same, ads, np.array([1, 4, 4, 0, 4, 0], np.float32), ALL)
    taken = []
    for _ in range(K):
        taken += items(candidates, taken)
    assert taken == [1, 2, 4]


def test_an_unpaid_ad_goes_before_the_organic_item_it_shares_a_code_with():
    is_ad = np.array([False, True, False, False, False, False])
    candidates = PREPARE(np.zeros((6, C), np.int32), is_ad, np.zeros(6, np.float32), ALL)
    assert items(candidates, []) == [1]
    assert items(candidates, [1]) == [0]


def test_a_dead_beam_has_no_options():
    candidates = PREPARE(CODES, IS_AD, BID, ALL)
    for depth in range(C):
        options = candidates.options(depth, jnp.array([-1]), jnp.full((1, K), -1))
        assert not options.where.any()


def catalogue(seed=0, size=40):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (size, C)).astype(np.int32)
    bid = rng.choice([0.0, 1.0, 2.5], size).astype(np.float32)
    return codes, bid, rng.random(size) < 0.5


def best_by_loop(codes, bid, available):
    """`{codes: (bids on the way, item)}`: maxima over items, ties to the lowest id."""
    live = np.flatnonzero(available)
    below = lambda prefix: [i for i in live if tuple(codes[i, : len(prefix)]) == prefix]
    best = {}
    for i in live:
        prefixes = [tuple(codes[i, : d + 1].tolist()) for d in range(C)]
        bids = tuple(float(max(bid[j] for j in below(p))) for p in prefixes)
        best[prefixes[-1]] = bids, int(max(below(prefixes[-1]), key=lambda j: (bid[j], -j)))
    return best


@pytest.mark.parametrize("seed", range(3))
def test_catalogue_bids_and_items_are_maxima_over_what_is_available(seed):
    codes, bid, available = catalogue(seed)
    candidates = catalogue_candidates(catalogue_index(codes, 4), bid, available)
    assert one_item_paths(candidates) == best_by_loop(codes, bid, available)


def test_a_catalogue_without_bids_offers_the_first_item_of_each_leaf():
    codes, _, _ = catalogue()
    found = one_item_paths(catalogue_candidates(catalogue_index(codes, 4)))
    assert found == best_by_loop(codes, np.zeros(len(codes)), np.ones(len(codes), bool))


def one_item_paths(candidates):
    """As `paths`, for the one slot that a catalogue is searched for."""
    narrow = dataclasses.make_dataclass("OneSlot", ["options", "item"])
    return paths(narrow(lambda d, n, c: candidates.options(d, n, c[:, :1]), candidates.item), [])


@pytest.mark.parametrize("bid", [np.nan, np.inf, -1.0])
def test_a_bid_of_a_catalogue_that_is_none_is_refused(bid):
    index = catalogue_index(np.zeros((3, 2), int), 4)
    with pytest.raises(ValueError, match=r"item 1: .* is not a bid from 0 to"):
        catalogue_candidates(index, np.array([1.0, bid, 2.0]))


def test_new_bids_keep_the_shapes_of_a_catalogue():
    codes, bid, available = catalogue()
    index = catalogue_index(codes, 4)
    first, second = (catalogue_candidates(index, b, available) for b in (bid, bid[::-1]))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, second)


def test_a_slate_from_a_catalogue_is_refused():
    candidates = catalogue_candidates(catalogue_index(CODES, 3))
    with pytest.raises(ValueError, match="searched for 1 item, not for slates of 3"):
        candidates.options(0, jnp.zeros(1, jnp.int32), jnp.full((1, 3), -1))
