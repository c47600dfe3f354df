"""One call from requests to prices: bounds, messages, levers, and saving."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import tiny_cascade, tiny_gr
from tiny_mechanism import tiny_mechanism
from tiny_models import LEVERS, K, N, P, R, T, random_requests, tiny_ega

from ega_jax import mechanism
from ega_jax.auction.pricing import RULES, PricingConfig
from ega_jax.auction.system import Levers, check_levers
from ega_jax.errors import UserError
from ega_jax.mechanism import TRUTHFUL, Mechanism, checked, mechanism_folder
from ega_jax.request_rules import RequestSizes
from ega_jax.training.checkpoints import save_tree

REQUESTS = random_requests(11, 6)


@pytest.fixture(autouse=True, scope="module")
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("rule", [*RULES, TRUTHFUL])
def test_every_rule_prices_within_the_bid(rule):
    slate = tiny_mechanism().allocate(REQUESTS, rule)
    bid_of = [
        dict(zip(i.tolist(), b.tolist(), strict=True))
        for i, b in zip(REQUESTS.item, REQUESTS.bid, strict=True)
    ]
    for row in range(6):
        for slot in range(K):
            item, price = int(slate.items[row, slot]), float(slate.price_per_click[row, slot])
            if slate.is_ad[row, slot]:
                assert 0 <= price <= bid_of[row][item]
            else:
                assert price == 0
            assert 0 < slate.pctr[row, slot] < 1 or item == -1
    assert slate.is_ad.any()


@pytest.mark.parametrize(
    ("make", "levers", "rule"),
    [
        (tiny_ega, ("alpha", "kappa"), "gsp"),
        (tiny_gr, ("kappa",), "first_price"),
        (tiny_cascade, ("kappa",), "first_price"),
    ],
)
def test_slates_along_levers_are_those_of_each_point(make, levers, rule):
    m = dataclasses.replace(tiny_mechanism(), system=make())
    points = [{lever: value} for lever in levers for value in (0.5, 16.0)]
    along = m.allocate_along(REQUESTS, rule, points)
    for place, point in enumerate(points):
        one = jax.tree.map(lambda x, place=place: x[place], along)
        chex.assert_trees_all_close(one, m.allocate(REQUESTS, rule, **point), rtol=1e-5)
    with pytest.raises(UserError, match="kappa"):
        m.allocate_along(REQUESTS, rule, [{"kappa": 1.0}, {"kappa": -1.0}])
    for nothing in ([], [{}, {}]):
        with pytest.raises(UserError, match="none changes a lever"):
            m.allocate_along(REQUESTS, rule, nothing)


def test_a_slate_comes_with_the_menu_from_which_it_was_chosen():
    slates, menu = tiny_mechanism().allocate_with_menu(REQUESTS)
    chex.assert_trees_all_close(slates, tiny_mechanism().allocate(REQUESTS), rtol=1e-5)
    row, best = np.arange(6), np.asarray(menu.value).argmax(1)
    np.testing.assert_array_equal(np.asarray(menu.item)[row, best], slates.items)
    np.testing.assert_array_equal(np.asarray(menu.is_ad)[row, best], slates.is_ad)


def test_devices_share_a_batch_wherever_its_arrays_lie():
    slates = tiny_mechanism().allocate(REQUESTS)
    assert len(slates.items.sharding.device_set) == 4, "six requests, padded to eight"
    moved = jax.device_put(REQUESTS, jax.devices()[3])
    chex.assert_trees_all_equal(tiny_mechanism().allocate(moved), slates)


def test_levers_keep_their_types_whatever_is_changed():
    plain = check_levers(Levers(), {})
    for changes in ({"beta": 8}, {"alpha": 3}, {"beta": 8, "max_ads": 2.0}):
        types = jax.tree.map(jax.typeof, check_levers(Levers(), changes))
        assert types == jax.tree.map(jax.typeof, plain)
        assert not any(x.weak_type for x in jax.tree.leaves(types))


def test_levers_bids_and_rules_change_without_compiling_again():
    m = tiny_mechanism()
    first = m.allocate(REQUESTS)
    compiled = mechanism.serve._cache_size()
    slates = [first]
    for rule, changes in (
        ("threshold", {"alpha": 2.0, "beta": 0.5}),
        ("gsp", {"reserve": 0.6, "min_gap": 1}),
        ("clarke", {"kappa": 1.5, "max_ads": 1}),
        ("truthful", {}),
    ):
        request = REQUESTS.replace(bid=REQUESTS.bid * np.float32(1 + len(slates)))
        slates.append(m.allocate(request, rule, **changes))
    assert mechanism.serve._cache_size() == compiled
    chex.assert_trees_all_equal(first, m.allocate(REQUESTS))
    prices = [slate.price_per_click for slate in slates]
    assert all((x != y).any() for x, y in itertools.combinations(prices, 2))


def with_first_ads_as_organic_items():
    """Requests whose last candidate is organic and has the POI of the first ad, if there is one."""
    request = random_requests(5, 6)  # Shaped as others are: compiled once.
    last = np.arange(N) == N - 1
    is_ad = request.is_ad & ~last
    first_ad = np.where(is_ad[:, 0], request.item[:, 0], -1)
    assert (first_ad >= 0).any()
    return request.replace(
        item=np.where(last, first_ad[:, None], request.item).astype(np.int32),
        is_ad=is_ad,
        bid=np.where(is_ad, request.bid, 0.0).astype(np.float32),
    )


@pytest.mark.parametrize("rule", ["clarke", TRUTHFUL])
def test_a_poi_that_is_ad_and_organic_is_shown_once(rule):
    slates = [
        tiny_mechanism().allocate(with_first_ads_as_organic_items(), rule, beta=beta)
        for beta in (0.1, 50.0)
    ]
    for slate in slates:
        for row in np.asarray(slate.items):
            shown = row[row >= 0].tolist()
            assert len(set(shown)) == len(shown)


def test_where_no_ad_may_be_shown_its_poi_is_shown_as_an_organic_item():
    both = with_first_ads_as_organic_items()
    item = np.where(both.is_ad, -1, both.item).astype(np.int32)
    organic = both.replace(item=item, is_ad=np.zeros_like(both.is_ad), bid=0 * both.bid)
    found, expected = (tiny_mechanism().allocate(x, "gsp", max_ads=0) for x in (both, organic))
    chex.assert_trees_all_close(found, expected, rtol=1e-5)
    assert not found.is_ad.any()
    assert (np.asarray(found.items)[both.is_ad[:, 0]] == both.item[both.is_ad[:, 0], :1]).any()


def test_a_saved_mechanism_serves_the_same_slates(tmp_path):
    m = tiny_mechanism()
    m.save(mechanism_folder(tmp_path, "ega"))
    restored = Mechanism.restore(tmp_path)
    assert restored.system.config == m.system.config
    for rule in ("threshold", "clarke"):
        chex.assert_trees_all_equal(restored.allocate(REQUESTS, rule), m.allocate(REQUESTS, rule))
    with pytest.raises(FileNotFoundError, match=r"no mechanism 'other'.*auction_align"):
        Mechanism.restore(tmp_path, "other")


@pytest.mark.parametrize("name", ["mca", "gr"])
def test_every_kind_of_system_is_saved_and_serves_the_same_slates(tmp_path, name):
    system = {"mca": tiny_cascade, "gr": tiny_gr}[name]()
    pricing = PricingConfig(hidden=(8, 4), probes=(), heads=())
    m = Mechanism(system, {}, pricing, LEVERS, "gsp")
    m.save(mechanism_folder(tmp_path, name))
    restored = Mechanism.restore(tmp_path, name)
    assert type(restored.system) is type(system)
    assert jax.tree.structure(restored.system) == jax.tree.structure(system)
    chex.assert_trees_all_equal(restored.system, system)
    assert (restored.pricing, restored.rule) == (m.pricing, m.rule)
    for rule in ("gsp", "clarke"):
        slate = m.allocate(REQUESTS, rule)
        assert slate.is_ad.any()
        chex.assert_trees_all_equal(restored.allocate(REQUESTS, rule), slate)
    with pytest.raises(FileNotFoundError, match=f"no mechanism 'ega', but {name}"):
        Mechanism.restore(tmp_path)


def test_a_mechanism_saved_by_an_earlier_version_is_refused(tmp_path):
    save_tree(mechanism_folder(tmp_path, "ega"), {"x": jnp.ones(1)}, {"config": {}})
    with pytest.raises(ValueError, match="saved by an earlier version: run exp"):
        Mechanism.restore(tmp_path)


def changed(name, row, place, value):
    """The requests with one entry replaced."""
    array = np.array(getattr(REQUESTS, name))
    array[row, place] = value
    return REQUESTS.replace(**{name: array})


AD_ROW, AD = np.argwhere(REQUESTS.is_ad)[-1]
FIRST_AD = np.flatnonzero(REQUESTS.is_ad[AD_ROW])[0]
TWICE = changed("item", AD_ROW, AD, REQUESTS.item[AD_ROW, FIRST_AD])
HUGE = REQUESTS.replace(bid=REQUESTS.bid.astype(np.float64))
HUGE.bid[AD_ROW, AD] = 1e39


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (changed("bid", AD_ROW, AD, np.nan), f"request {AD_ROW}, ad {AD}: nan is not a bid"),
        (changed("bid", AD_ROW, AD, -0.5), f"request {AD_ROW}, ad {AD}: -0.5 is not a bid"),
        (changed("bid", AD_ROW, AD, np.inf), f"request {AD_ROW}, ad {AD}: inf is not a bid"),
        (changed("item", 1, 0, P), rf"request 1, item 0: {P} is outside \[0, {P}\)"),
        (changed("item", 1, 0, -2), r"request 1, item 0: -2 is outside"),
        (changed("history_poi", 0, 2, P), "request 0, history_poi 2"),
        (changed("history_creative", 5, 1, R), "request 5, history_creative 1"),
        (changed("item", 2, slice(None), -1), "request 2 has no candidates"),
        (TWICE, rf"request {AD_ROW}, candidate {AD}: \d+ is listed twice"),
        (HUGE, f"request {AD_ROW}, ad {AD}: 1e\\+39 is not a bid"),
        (REQUESTS.replace(item=[[1], [2, 3]]), "item: rows of unequal length"),
        (
            REQUESTS.replace(bid=REQUESTS.bid[:, 1:]),
            r"bid is \[6, 5\] and item \[6, 6\] in a batch",
        ),
        (REQUESTS.replace(item=REQUESTS.item * 1.0), "item is float64: ids are integers"),
        (REQUESTS.replace(history_poi=REQUESTS.history_poi[0]), r"history_poi \[4\] in a batch"),
    ],
)
def test_a_request_that_breaks_a_rule_is_named(request_, message):
    with pytest.raises(ValueError, match=message):
        tiny_mechanism().allocate(request_)


def test_few_candidates_are_served_whatever_there_are():
    """Fewer than there are slots, rivals that count, or candidates of a logged request."""
    few = REQUESTS.replace(**{n: getattr(REQUESTS, n)[:, :2] for n in ("item", "is_ad", "bid")})
    widened = few.replace(
        item=np.where(np.arange(N) < 2, REQUESTS.item, -1),
        is_ad=REQUESTS.is_ad & (np.arange(N) < 2),
        bid=np.where(np.arange(N) < 2, REQUESTS.bid, 0.0),
    )
    slates = [tiny_mechanism().allocate(request) for request in (few, widened)]
    chex.assert_trees_all_close(*slates, rtol=1e-5)


def test_histories_of_any_length_and_lists_are_served():
    expected = tiny_mechanism().allocate(REQUESTS)
    names = ("history_poi", "history_creative")
    behaviour = np.full((6, 2), 3)
    longer = {name: np.hstack([behaviour, getattr(REQUESTS, name)]) for name in names}
    chex.assert_trees_all_equal(tiny_mechanism().allocate(REQUESTS.replace(**longer)), expected)
    shorter = {name: getattr(REQUESTS, name)[:, -1:] for name in names}
    padded = {
        name: np.pad(ids, ((0, 0), (3, 0)), constant_values=-1) for name, ids in shorter.items()
    }
    chex.assert_trees_all_equal(
        *[tiny_mechanism().allocate(REQUESTS.replace(**ids)) for ids in (shorter, padded)]
    )
    nothing = REQUESTS.replace(**{name: [[]] * 6 for name in names})
    none = REQUESTS.replace(**{name: np.full((6, 4), -1) for name in names})
    chex.assert_trees_all_equal(*[tiny_mechanism().allocate(x) for x in (nothing, none)])
    lists = jax.tree.map(lambda values: values.tolist(), REQUESTS)
    chex.assert_trees_all_equal(tiny_mechanism().allocate(lists), expected)


def test_what_stands_where_there_is_no_candidate_reaches_no_model():
    is_blank = REQUESTS.item < 0
    assert is_blank.any()
    bid = np.where(is_blank, np.nan, REQUESTS.bid)
    unset = REQUESTS.replace(bid=bid, is_ad=is_blank | REQUESTS.is_ad)
    found = checked(unset, RequestSizes(P, R, history_length=T))
    np.testing.assert_array_equal(found.bid, np.where(is_blank, 0.0, REQUESTS.bid))
    np.testing.assert_array_equal(found.is_ad, ~is_blank & REQUESTS.is_ad)


def test_whole_bids_are_priced_as_the_same_numbers_are():
    whole = REQUESTS.replace(bid=np.ceil(REQUESTS.bid).astype(np.int64), is_ad=1 * REQUESTS.is_ad)
    same = REQUESTS.replace(bid=np.ceil(REQUESTS.bid))
    chex.assert_trees_all_equal(*[tiny_mechanism().allocate(x) for x in (whole, same)])
    explained = [tiny_mechanism().explain(x, row=1).lowest_bid for x in (whole, same)]
    np.testing.assert_array_equal(*explained)


def test_an_organic_bid_and_unknown_settings_are_refused():
    row, place = np.argwhere(~REQUESTS.is_ad & (REQUESTS.item >= 0))[0]
    with pytest.raises(ValueError, match=f"request {row}, organic item {place}"):
        tiny_mechanism().allocate(changed("bid", row, place, 1.0))
    with pytest.raises(ValueError, match=r"'vickrey' is not one of first_price"):
        tiny_mechanism().allocate(REQUESTS, "vickrey")
    with pytest.raises(ValueError, match="no lever 'gamma'; valid levers: alpha"):
        tiny_mechanism().allocate(REQUESTS, gamma=1.0)
    for wrong in (0.5, 2**31, np.nan):
        with pytest.raises(ValueError, match=f"max_ads is {wrong}: it must be a whole number"):
            tiny_mechanism().allocate(REQUESTS, max_ads=wrong)
    with pytest.raises(ValueError, match=r"reserve is 1e\+39: it must be at least 0 and at most"):
        tiny_mechanism().allocate(REQUESTS, reserve=1e39)
    with pytest.raises(ValueError, match=r"alpha is 0\.0: it must be above 0"):
        tiny_mechanism().allocate(REQUESTS, alpha=0.0)
    with pytest.raises(ValueError, match="lever beta is -1"):
        tiny_mechanism().allocate(REQUESTS, beta=-1.0)
    with pytest.raises(ValueError, match=r"lever bid_free is 0\.3: it must be False or True"):
        tiny_mechanism().allocate(REQUESTS, bid_free=0.3)


def test_the_truthful_mode_keeps_a_reserve():
    free, slate = (tiny_mechanism().allocate(REQUESTS, TRUTHFUL, reserve=r) for r in (0.0, 0.6))
    charged = slate.price_per_click[slate.is_ad]
    assert (charged >= np.float32(0.6)).all()
    assert (charged <= slate.bid[slate.is_ad]).all()
    assert (free.price_per_click[free.is_ad] < 0.6).any()
    assert (free.bid[free.is_ad] < 0.6).any()


def test_the_truthful_mode_is_bid_free():
    with pytest.raises(ValueError, match="the truthful mode is bid-free"):
        tiny_mechanism().allocate(REQUESTS, TRUTHFUL, bid_free=False)


def test_a_mechanism_without_networks_is_restored(tmp_path):
    m = dataclasses.replace(
        tiny_mechanism(), networks={}, pricing=PricingConfig(heads=(), probes=()), rule="gsp"
    )
    m.save(mechanism_folder(tmp_path, "plain"))
    again = Mechanism.restore(tmp_path, "plain")
    assert again.networks == {}
    chex.assert_trees_all_equal(again.allocate(REQUESTS), m.allocate(REQUESTS))


def test_a_bid_beyond_all_others_pays_what_it_costs_them():
    """It is shown from some bid on and owes the same from there; its value drowns nothing."""
    is_loud = np.arange(N) == REQUESTS.is_ad.argmax(1)[:, None]
    loud = lambda factor: REQUESTS.replace(
        bid=np.where(is_loud, REQUESTS.bid * factor, REQUESTS.bid).astype(np.float32)
    )
    before, after = (tiny_mechanism().allocate(loud(x), TRUTHFUL) for x in (1e3, 1e9))
    chex.assert_trees_all_equal(before.items, after.items)
    own = np.asarray(before.items) == REQUESTS.item[is_loud][:, None]
    owed = np.asarray(before.price_per_click)[own]
    assert owed.size == len(own)
    assert (owed > 0).any()
    np.testing.assert_allclose(np.asarray(after.price_per_click)[own], owed, rtol=1e-4)


@pytest.mark.parametrize("rule", ["clarke", TRUTHFUL])
def test_while_the_slate_stays_an_ads_price_does_not_move_with_its_own_bid(rule):
    before, compared = tiny_mechanism().allocate(REQUESTS, rule), 0
    items, is_ad = np.asarray(before.items), np.asarray(before.is_ad)
    price = np.asarray(before.price_per_click)
    for slot in range(K):
        own = (REQUESTS.item == items[:, slot, None]) & REQUESTS.is_ad & is_ad[:, slot, None]
        for factor in (1.3, 10.0):
            bid = np.where(own, REQUESTS.bid * factor, REQUESTS.bid).astype(np.float32)
            after = tiny_mechanism().allocate(REQUESTS.replace(bid=bid), rule)
            stays = is_ad[:, slot] & (np.asarray(after.items) == items).all(axis=1)
            # A price that the lower bid limits may rise.
            stays &= price[:, slot] < 0.999 * np.max(REQUESTS.bid * own, axis=1)
            found = np.asarray(after.price_per_click)[stays, slot]
            np.testing.assert_allclose(found, price[stays, slot], rtol=1e-4, atol=1e-5)
            compared += stays.sum()
    assert compared > 0


def test_extreme_bids_neither_break_prices_nor_order():
    """0, 1e-9 and 1e9, equal bids, one ad, no ad."""
    for bids in ([0.0] * N, [1e-9] * N, [1e9] * N, [1e9, 1e-9, 0.0, 1.0, 1.0, 1.0]):
        bid = np.where(REQUESTS.is_ad, np.float32(bids), np.float32(0))
        for rule in (*RULES, TRUTHFUL):
            slate = tiny_mechanism().allocate(REQUESTS.replace(bid=bid), rule)
            price = np.asarray(slate.price_per_click)
            assert np.isfinite(price).all()
            assert (price >= 0).all()
            assert (price <= np.max(bid, axis=1, keepdims=True)).all()
    only = np.broadcast_to(np.arange(N) == 0, (6, N))
    lone = REQUESTS.replace(is_ad=only, bid=only.astype(np.float32))
    for rule in (*RULES, TRUTHFUL):
        assert np.isfinite(tiny_mechanism().allocate(lone, rule).price_per_click).all()


def test_a_row_beyond_the_batch_is_refused():
    with pytest.raises(ValueError, match="row 6 is outside of a batch of 6"):
        tiny_mechanism().explain(REQUESTS, row=6)


def test_double_precision_elsewhere_in_the_process_does_no_harm():
    mechanism = tiny_mechanism()
    with jax.enable_x64(True):
        slate = jax.eval_shape(lambda: mechanism.allocate(REQUESTS))
    assert slate.price_per_click.shape == (6, K)
