"""The fates of ads against searches with other levers; what advertisers got, by loops."""

import dataclasses

import jax
import numpy as np
import pytest
from book_requests import in_books
from tiny_mechanism import requests_with_ads_last, tiny_mechanism
from tiny_models import batch_of

from ega_jax.auction.system import check_levers
from ega_jax.evaluation import visits
from ega_jax.evaluation.advertisers import accounts
from ega_jax.evaluation.serving import judges_of
from ega_jax.evaluation.visits import FATES, SHOWN, visit_batch
from ega_jax.generation.bidding import TOKEN_VALUES

B = 6


def weighing(token_value):
    """The tiny mechanism with tokens that weigh so."""
    mechanism = tiny_mechanism()
    config = dataclasses.replace(mechanism.system.config, token_value=token_value)
    return dataclasses.replace(
        mechanism, system=dataclasses.replace(mechanism.system, config=config)
    )


def visited(token_value="bid", **levers):
    requests, mechanism = requests_with_ads_last(3, B), weighing(token_value)
    changed = check_levers(mechanism.levers, levers)
    mechanism = dataclasses.replace(mechanism, levers=changed)
    items = np.asarray(mechanism.allocate(requests, "gsp").items)
    clicked = np.zeros(items.shape, bool)
    clicked[:, 0] = True
    logged = {"session": np.arange(B), "shown_poi": items, "click_poi": clicked}
    batch = batch_of(requests, **logged)
    return requests, visit_batch(mechanism, batch, None, judges_of(None), "gsp")


def fate_of(found, row, poi):
    (place,) = np.flatnonzero(found.ad[row] == poi)
    return FATES[found.fate[row, place]]


def test_every_ad_for_sale_has_one_fate():
    requests, found = visited()
    slates = tiny_mechanism().allocate(requests, "gsp")
    for row in range(B):
        is_ad = np.asarray(requests.is_ad[row])
        for_sale = set(np.asarray(requests.item[row])[is_ad].tolist())
        shown = {
            i for i, ad in zip(slates.items[row].tolist(), slates.is_ad[row], strict=True) if ad
        }
        assert {poi for poi in found.ad[row].tolist() if poi >= 0} == for_sale
        assert {poi for poi in for_sale if fate_of(found, row, poi) == "shown"} == shown
    assert (found.fate[found.ad < 0] == -1).all()
    assert found.is_logged.sum() == (found.item >= 0).sum()
    assert np.isnan(found.chance).all()


def test_ads_below_the_reserve_are_never_shown():
    _, free = visited()
    reserve = float(np.median(free.ad_bid[free.ad >= 0]))
    _, found = visited(reserve=reserve)
    below = (found.ad >= 0) & (found.ad_bid < reserve)
    assert below.any()
    assert ((found.fate == FATES.index("reserve")) == below).all()


def test_without_room_for_ads_those_of_the_free_search_are_lost_to_limits():
    _, free = visited(max_ads=2**30, min_gap=0)
    _, found = visited(max_ads=0, min_gap=0)
    assert not (found.fate == SHOWN).any()
    assert ((found.fate == FATES.index("limits")) == (free.fate == SHOWN)).all()


def test_outranked_ads_are_in_the_menu(monkeypatch):
    """Those that are never generated are in none of its slates."""
    requests, found = visited()
    _, menu = tiny_mechanism().allocate_with_menu(requests, "gsp")
    item = np.where(np.asarray(menu.is_ad), np.asarray(menu.item), -1)
    for row in range(B):
        seen = set(item[row][np.asarray(menu.where[row])].ravel().tolist())
        for poi in found.ad[row][found.ad[row] >= 0].tolist():
            fate = fate_of(found, row, poi)
            if fate in ("outranked", "never generated"):
                assert (poi in seen) == (fate == "outranked")
    assert {"outranked", "never generated"} & {FATES[f] for f in found.fate.ravel() if f >= 0}


def visited_in_books(requests, shown, mechanism, reserve=0.0):
    """Visits of requests to books, whose ads have a reserve of their own."""
    books, ledger, batch = in_books(requests, mechanism.system, reserve)
    batch |= {"session": np.arange(B), "shown_poi": shown, "click_poi": np.zeros(shown.shape, bool)}
    return visit_batch(mechanism.with_book(ledger.book), batch, books, judges_of(None), "gsp")


def test_ads_below_a_reserve_of_their_own_are_never_shown():
    requests, free = visited()
    reserve = float(np.median(free.ad_bid[free.ad >= 0]))
    found = visited_in_books(requests, free.item, tiny_mechanism(), reserve)
    below = (found.ad >= 0) & (found.ad_bid < np.float32(reserve))
    assert below.any()
    assert ((found.fate == FATES.index("reserve")) == below).all()


@pytest.mark.parametrize("token_value", TOKEN_VALUES)
def test_ads_of_books_have_the_fates_of_lists(token_value):
    requests, of_lists = visited(token_value)
    found = visited_in_books(requests, of_lists.item, weighing(token_value))
    np.testing.assert_array_equal(found.item, of_lists.item)
    for row in range(B):
        for poi in of_lists.ad[row][of_lists.ad[row] >= 0].tolist():
            assert fate_of(found, row, poi) == fate_of(of_lists, row, poi)
    assert (found.ad >= 0).sum() == (of_lists.ad >= 0).sum()


def test_accounts_by_loops():
    _, found = visited()
    num_pois = int(max(found.ad.max(), found.item.max())) + 1
    totals = accounts(found, num_pois)
    clicks, spend, value = np.zeros((3, num_pois))
    for place in np.ndindex(*found.item.shape):
        if found.is_ad[place]:
            click = float(found.click["model"][place])
            clicks[found.item[place]] += click
            spend[found.item[place]] += click * found.price[place]
            value[found.item[place]] += click * found.bid[place]
    np.testing.assert_allclose(totals.clicks, clicks, rtol=1e-6)
    np.testing.assert_allclose(totals.spend, spend, rtol=1e-6)
    np.testing.assert_allclose(totals.surplus, value - spend, rtol=1e-4, atol=1e-7)
    lost = sum(totals.lost.values())
    np.testing.assert_array_equal(totals.impressions + lost, totals.requests)
    order = totals.by_spend()
    assert set(order.tolist()) == set(found.ad[found.ad >= 0].tolist())
    assert (np.diff(totals.spend[order]) <= 0).all()


def test_blank_rows_are_left_out():
    requests = requests_with_ads_last(3, B)
    logged = {"session": np.arange(B), "shown_poi": np.full((B, 9), -1)}
    batch = {name: np.array(x) for name, x in batch_of(requests, **logged).items()}
    slots = tiny_mechanism().allocate(requests, "gsp").items.shape[1]
    batch["shown_poi"] = np.full((B, slots), -1)
    batch["click_poi"] = np.zeros((B, slots), bool)
    batch["item"][4:] = -1
    found = visit_batch(tiny_mechanism(), batch, None, judges_of(None), "gsp")
    assert found.session.tolist() == [0, 1, 2, 3]
    assert jax.tree.leaves(vars(found))[0].shape[0] == 4
    assert not found.is_logged.any()


def test_an_offer_finds_its_ads_by_poi():
    offer = visits.Offer(np.array([[4, 7, -1]]), np.ones((1, 3)))
    assert offer.among(np.array([[7, -1, 9]])).tolist() == [[False, True, False]]
    assert offer.among(np.array([[-1]])).tolist() == [[False, False, False]]
