"""The rules against loops, brute force and each other; edges, ties, transformations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_kinds import KINDS, TRACED

from ega_jax.payment import rules

each_kind = pytest.mark.parametrize("kind", KINDS)


def gsp_by_loop(bids, quality, num_slots, reserve):
    ads = [i for i in range(len(bids)) if bids[i] >= reserve]
    ads.sort(key=lambda i: -bids[i] * quality[i])
    slots = []
    for place, i in enumerate(ads[:num_slots]):
        rest = [bids[j] * quality[j] for j in ads[place + 1 :]]
        slots.append((i, min(max(rest[0] / quality[i] if rest else 0.0, reserve), bids[i])))
    return slots + [(-1, 0.0)] * (num_slots - len(slots))


def welfare(bids, quality, slot_ctr, without=None):
    """Best total value by trying every assignment of ads to slots."""
    ads = [i for i in range(len(bids)) if i != without] + [None] * len(slot_ctr)
    return max(
        sum(b_q * c for b_q, c in zip(values, slot_ctr, strict=True))
        for chosen in itertools.permutations(ads, len(slot_ctr))
        for values in [[0.0 if i is None else bids[i] * quality[i] for i in chosen]]
    )


def auction(seed, n=5, k=3):
    rng = np.random.default_rng(seed)
    slot_ctr = np.sort(rng.random(k))[::-1]
    return rng.lognormal(0, 1, n), 0.05 + rng.random(n), slot_ctr


@each_kind
@pytest.mark.parametrize("reserve", [0.0, 0.8])
def test_gsp_against_a_loop(kind, reserve):
    for seed, num_slots in itertools.product(range(5), (1, 3, 7)):
        bids, quality, _ = auction(seed)
        expected = gsp_by_loop(bids, quality, num_slots, reserve)
        order, price = KINDS[kind].gsp(bids, quality, num_slots, reserve)
        np.testing.assert_array_equal(order, [i for i, _ in expected])
        np.testing.assert_allclose(price, [p for _, p in expected], rtol=1e-6)


@each_kind
def test_vcg_charges_what_an_ad_costs_the_others(kind):
    for seed in range(5):
        bids, quality, slot_ctr = auction(seed, n=4, k=3)
        order, total = KINDS[kind].vcg(bids, quality, slot_ctr)
        best = welfare(bids, quality, slot_ctr)
        for i, c, paid in zip(np.asarray(order), slot_ctr, total, strict=True):
            others = best - bids[i] * quality[i] * c
            np.testing.assert_allclose(
                paid, welfare(bids, quality, slot_ctr, i) - others, rtol=1e-6, atol=1e-9
            )


CLICKS_OF_BIDS = jax.jit(
    lambda grid, i, bids, quality, slot_ctr, reserve: jax.vmap(
        lambda b: (
            quality[i]
            * jnp.sum(
                jnp.where(
                    rules.vcg(bids.at[i].set(b), quality, slot_ctr, reserve)[0] == i, slot_ctr, 0.0
                )
            )
        )
    )(grid)
)


@pytest.mark.parametrize("reserve", [0.0, 0.7])
def test_vcg_with_reserve_is_myerson_on_its_own_allocation(reserve):
    """Whatever the qualities: so it is truthful."""
    for seed in range(5):
        bids, quality, slot_ctr = (jnp.asarray(x) for x in auction(seed))
        order, total = TRACED.vcg(bids, quality, slot_ctr, reserve)
        for i, paid in zip(order[order >= 0], total[order >= 0], strict=True):
            grid = jnp.linspace(0, bids[i], 4001)
            clicks = CLICKS_OF_BIDS(grid, i, bids, quality, slot_ctr, reserve)
            expected = TRACED.myerson(grid, clicks)
            np.testing.assert_allclose(paid, expected, atol=1e-3 * bids[i] * quality[i])


def test_vcg_gives_the_best_slot_to_the_best_ad_wherever_it_stands():
    order, total = rules.vcg([2.0, 4.0, 3.0], [1.0, 1.0, 1.0], [0.2, 0.4])
    np.testing.assert_array_equal(order, [2, 1])
    np.testing.assert_allclose(total, [0.4, 1.0], rtol=1e-12)


@each_kind
def test_clarke_against_a_loop(kind):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        bids, clicks = rng.lognormal(0, 1, 4), rng.random((9, 4))
        value = [sum(b * x for b, x in zip(bids, row, strict=True)) for row in clicks]
        best = max(range(9), key=value.__getitem__)
        chosen, total = KINDS[kind].clarke(bids, clicks)
        assert chosen == best
        for i in range(4):
            without = max(v - bids[i] * row[i] for v, row in zip(value, clicks, strict=True))
            expected = without - (value[best] - bids[i] * clicks[best, i])
            tolerance = {"host": 1e-12, "float32": 1e-6}[kind]
            np.testing.assert_allclose(total[i], expected, atol=tolerance)


@each_kind
def test_clarke_sees_the_small_beside_the_large(kind):
    """Ad 0 costs ad 1 its click, a billionth of the welfare."""
    bids, clicks = [1e9, 1.0], [[1.0, 0.0], [0.5, 0.75]]
    chosen, total = KINDS[kind].clarke(np.array(bids), np.array(clicks))
    assert chosen == 0
    np.testing.assert_allclose(total, [0.75, 0.0], rtol=1e-6)


def test_myerson_is_bid_times_clicks_less_the_integral():
    rng = np.random.default_rng(0)
    grid, clicks = np.sort(rng.random(200)), np.sort(rng.random(200))
    grid[0] = 0.0
    expected = grid[-1] * clicks[-1] - np.trapezoid(clicks, grid)
    np.testing.assert_allclose(rules.myerson(grid, clicks), expected, rtol=1e-12)
    np.testing.assert_allclose(TRACED.myerson(grid, clicks), expected, rtol=1e-6)


def test_myerson_of_a_step_is_the_least_winning_bid():
    np.testing.assert_allclose(rules.myerson([0, 0.3, 0.3, 1], [0, 0, 0.5, 0.5]), 0.15, rtol=1e-12)
    assert rules.myerson([0.0, 1.0, 2.0], [0.4, 0.4, 0.4]) == 0
    assert rules.myerson([0.0, 1.0, 2.0], [0.9, 0.5, 0.1]) == 0  # Falling clicks earn no rebate.


@each_kind
@pytest.mark.parametrize(
    ("bids", "quality", "order", "price"),
    [
        ([], [], [-1, -1], [0, 0]),
        ([5.0], [0.5], [0, -1], [0, 0]),
        ([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [0, 1], [2, 2]),
        ([0.0, 0.0], [1.0, 1.0], [0, 1], [0, 0]),
        ([1e9, 1e-9], [1.0, 1.0], [0, 1], [1e-9, 0]),
        ([1e-9, 1e9, 1e9], [1.0, 1.0, 1.0], [1, 2], [1e9, 1e-9]),
        ([3.0, 7.0], [0.0, 0.0], [0, 1], [0, 0]),
    ],
)
def test_edges_of_ranked_auctions(kind, bids, quality, order, price):
    bids, quality, price = (np.array(x, np.float32) for x in (bids, quality, price))
    found_order, found = KINDS[kind].gsp(bids, quality, 2)
    np.testing.assert_array_equal(found_order, order)
    np.testing.assert_allclose(found, price, rtol=1e-6)
    vcg_order, total = KINDS[kind].vcg(bids, quality, np.array([1.0, 0.0]))
    np.testing.assert_array_equal(vcg_order, order)
    worth = price[:1] * np.append(quality, 0.0)[order[:1]]
    np.testing.assert_allclose(total, [*worth, 0.0], rtol=1e-6)


@each_kind
def test_ties_go_to_the_lower_index_among_many(kind):
    bids = np.where(np.arange(40) % 2, 2.0, 1.0)
    expected = [*range(1, 40, 2), *range(0, 40, 2)]
    np.testing.assert_array_equal(KINDS[kind].gsp(bids, np.ones(40), 40)[0], expected)
    order, _ = KINDS[kind].vcg(bids, np.ones(40), bids / 2)  # So do tied slots.
    np.testing.assert_array_equal(order, np.arange(40))


@each_kind
def test_reserve_is_compared_as_given(kind):
    """In double 0.7 is more than its float32."""
    bids = np.array([0.7, 0.6], np.float32)
    order, price = KINDS[kind].gsp(bids, np.ones(2, np.float32), 2, 0.7)
    np.testing.assert_array_equal(order, [0, -1])
    np.testing.assert_array_equal(price, [bids[0], 0])


def test_clarke_without_rivals_or_ads_is_free():
    chosen, total = rules.clarke([3.0], [[0.0], [0.5]])
    assert (chosen, total.tolist()) == (1, [0.0])
    assert rules.clarke(np.zeros(0), np.zeros((2, 0)))[1].shape == (0,)
    chosen, total = rules.clarke([1.0, 1.0], [[0.0, 1.0], [1.0, 0.0]])
    assert (chosen, total.tolist()) == (0, [0.0, 1.0])


@pytest.mark.parametrize(("bad", "text"), [(-0.5, "-0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_bids_that_are_no_price_are_refused_by_position(bad, text):
    bids = [1.0, 2.0, bad]
    for call in (
        lambda: rules.gsp(bids, np.ones(3), 2),
        lambda: rules.vcg(jnp.array(bids), np.ones(3), [1.0]),
        lambda: rules.clarke(bids, np.ones((2, 3))),
    ):
        with pytest.raises(ValueError, match=f"^ad 2: a bid is .* got {text}$"):
            call()
    with pytest.raises(ValueError, match=r"^grid point 2: "):
        rules.myerson(bids, np.ones(3))
    with pytest.raises(ValueError, match=r"^request 1, ad 2: "):
        rules.check_bids(np.array([[1.0, 2.0, 3.0], bids]))


def test_arguments_that_do_not_fit_are_refused():
    for call in (
        lambda: rules.gsp([1.0, 2.0], [1.0], 2),
        lambda: rules.vcg([1.0, 2.0], [1.0], [1.0]),
        lambda: rules.clarke([1.0, 2.0], [[1.0]]),
        lambda: rules.myerson([0.0, 2.0], [1.0]),
    ):
        with pytest.raises(AssertionError):
            call()


MENU = jnp.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.8]])
BATCHED = {
    "gsp": lambda bids, quality: rules.gsp(bids, quality, 2, 0.5),
    "vcg": lambda bids, quality: rules.vcg(bids, quality, jnp.array([0.4, 0.3]), 0.5),
    "clarke": lambda bids, quality: rules.clarke(bids, quality[None] * MENU),
    "myerson": lambda bids, quality: rules.myerson(jnp.sort(bids), jnp.sort(quality)),
}


@pytest.mark.parametrize("name", BATCHED)
def test_pmap_of_vmap_is_one_by_one(name):
    rng = np.random.default_rng(1)
    bids, quality = rng.lognormal(0, 1, (2, 3, 3)), rng.random((2, 3, 3))
    found = jax.pmap(jax.vmap(BATCHED[name]))(bids.astype("f4"), quality.astype("f4"))
    alone = jax.jit(BATCHED[name])
    for place in np.ndindex(2, 3):
        leaves = jax.tree.leaves(alone(bids[place], quality[place]))
        for one, many in zip(leaves, jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(one, many[place], rtol=1e-6, atol=1e-7)


SLATE_GSP = jax.jit(rules.slate_gsp)


@pytest.mark.parametrize("losing", [0.0, 0.05, 9.0])
def test_slate_gsp_against_a_loop(losing):
    rng = np.random.default_rng(2)
    for num_ads in range(5):
        bid, pctr = rng.lognormal(0, 1, (2, 4)) / [[1], [10]]
        is_ad = rng.permutation(np.arange(4) < num_ads)
        ads = sorted(np.flatnonzero(is_ad), key=lambda i: -bid[i] * pctr[i])
        expected = np.zeros(4)
        for i, j in itertools.zip_longest(ads, ads[1:]):
            below = losing if j is None else bid[j] * pctr[j]
            expected[i] = min(below / pctr[i], bid[i])
        found = SLATE_GSP(bid * is_ad, pctr, is_ad, losing)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_slate_prices_by_hand():
    bid, pctr = jnp.array([4.0, 0.0, 2.0, 3.0]), jnp.array([0.5, 0.9, 0.0, 0.25])
    is_ad = jnp.array([True, False, True, True])
    np.testing.assert_array_equal(rules.slate_first_price(bid, is_ad), [4, 0, 2, 3])
    np.testing.assert_allclose(
        rules.slate_clarke(bid, pctr, jnp.array([0.5, 0.1, 0.5, -9.0])), [1, 0, 0, 0]
    )
    np.testing.assert_allclose(
        rules.with_reserve(jnp.array([1.0, 0, 0, 2.5]), bid, is_ad, 2.25), [2.25, 0, 2, 2.5]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rules.gsp([3, 2, 1], [0.1, np.nan, 0.3], 2), r"quality \[1\]: .* got nan"),
        (lambda: rules.gsp([3, 2], [0.1, 0.2], 2, np.nan), r"reserve \[\]: .* got nan"),
        (lambda: rules.vcg([3, 2], [0.1, 0.2], [1, -0.5]), r"slot_ctr \[1\]: .* got -0.5"),
        (lambda: rules.vcg([3, 2], [0.1, -0.2], [1, 0.5]), r"quality \[1\]: .* got -0.2"),
        (lambda: rules.clarke([1, 2], [[0.1, 0.2], [np.nan, 0]]), r"clicks \[1, 0\]: .* nan"),
        (lambda: rules.myerson([0, 1], [0, -1]), r"clicks \[1\]: .* got -1"),
        (lambda: rules.myerson([0, 2, 1], [0, 1, 1]), "bid_grid must rise from 0"),
        (lambda: rules.myerson([1, 2], [0.5, 1]), "bid_grid must rise from 0"),
    ],
)
def test_what_is_no_rate_and_no_grid_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_slate_myerson_is_myerson_per_click():
    grid = np.linspace(0, [4.0, 0.0, 2.0], 5, axis=-1)
    clicks = np.array([[0, 0.1, 0.1, 0.3, 0.4], [0.2] * 5, [0.1, 0.1, 0.1, 0, 0]])
    expected = [rules.myerson(grid[0], clicks[0]) / 0.4, 0.0, 0.0]
    found = rules.slate_myerson(jnp.asarray(grid), jnp.asarray(clicks))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert 0 < found[0] < 4
