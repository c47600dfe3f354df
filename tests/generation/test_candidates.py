"""Which codes may follow, what they are worth, and which items they stand for."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from listed import listed

from ega_jax.generation.candidates import list_candidates
from ega_jax.generation.slate_space import Prefix

K, C = 3, 2
CODES = np.array([[0, 0], [0, 1], [0, 0], [1, 0], [1, 0], [2, 1]], np.int32)
IS_AD = np.array([True, True, False, True, False, True])
BID = np.array([2.0, 5.0, 7.0, 1.0, 0.0, 5.0], np.float32)  # organic item 2 cannot bid.
ALL = np.ones(6, bool)
PREPARE = jax.jit(
    functools.partial(listed, num_slots=K, num_codes=3), static_argnames=("token_bid", "scope")
)


def paths(candidates, chosen):
    """`{(code, code): (bids on the way, item)}` that a beam holding `chosen` may take next."""
    padded = np.full((1, K), -1, np.int32)
    padded[0, : len(chosen)] = chosen
    held = candidates.chosen(jnp.asarray(padded))
    nodes = candidates.nodes(held)
    found = {}

    def prefix(node, codes):
        own = jnp.zeros((1, C), jnp.int32).at[0, : len(codes)].set(np.array(codes, np.int32))
        return Prefix(jnp.array([node]), own, held, nodes, jnp.array([True]))

    def walk(depth, node, codes, bids):
        if depth == C:
            found[codes] = (bids, int(candidates.ids(candidates.item(prefix(node, codes)))[0]))
            return
        options = candidates.options(depth, prefix(node, codes), candidates.widths[depth])
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
        listed(CODES, IS_AD, BID, ALL, K, 3, **choice)


def test_candidates_know_their_codes_and_nodes():
    candidates = PREPARE(CODES, IS_AD, BID, ALL)
    held = candidates.chosen(jnp.array([5, -1, 0, 3, 2, 4]))
    np.testing.assert_array_equal(candidates.ids(held), [5, -1, 0, 3, 2, 4])
    np.testing.assert_array_equal(
        np.asarray(candidates.codes(held))[[0, 2, 3, 4, 5]], CODES[[5, 0, 3, 2, 4]]
    )
    nodes = np.asarray(candidates.nodes(held))
    assert (nodes[1] == -1).all()
    for a, b in itertools.combinations([0, 2, 3, 4, 5], 2):
        for depth in range(C):
            codes = np.asarray(candidates.codes(held))
            same = (codes[a, : depth + 1] == codes[b, : depth + 1]).all()
            assert (nodes[a, depth] == nodes[b, depth]) == same


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


def test_an_ended_slate_has_no_options():
    candidates = PREPARE(CODES, IS_AD, BID, ALL)
    nothing = jnp.full((1, K), -1, jnp.int32)
    ended = Prefix(
        node=jnp.array([-1]), codes=jnp.zeros((1, C), jnp.int32), chosen=nothing,
        nodes=jnp.full((1, K, C), -1), live=jnp.array([False]),
    )  # fmt: skip
    for depth in range(C):
        assert not candidates.options(depth, ended, candidates.widths[depth]).where.any()


def test_an_organic_item_waits_for_the_ads_of_its_code_and_is_skipped_once_its_ad_is_shown():
    """POI 7 is ad 0 and organic item 2; POI 8 is organic item 3 and no ad."""
    codes = jnp.array([[0, 0], [1, 1], [0, 0], [2, 2]], jnp.int32)
    item, is_ad = jnp.array([7, 5, 7, 8]), jnp.array([True, True, False, False])
    make = lambda **rules: list_candidates(
        codes, item, is_ad, jnp.array([2.0, 1, 0, 0]), jnp.ones(4, bool),
        num_slots=K, num_codes=3, **rules,
    )  # fmt: skip
    assert items(make(), []) == [0, 1]  # Item 2 waits behind the ad of its leaf.
    assert items(make(), [0]) == [1, 3]  # The ad is shown, so the queue goes on with item 3.
    assert items(make(), [1]) == [0]
    assert items(make(max_ads=1), [1]) == [2]  # No ad may follow: its turn.
    assert items(make(max_ads=2), [2]) == [1, 3]  # POI 7 is shown, so its ad is used.
    assert items(make(min_gap=1), [1, 2]) == [3]
