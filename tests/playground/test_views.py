"""What is shown of a request against the mechanism's own answers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny_mechanism import requests_with_ads_last, tiny_mechanism
from tiny_models import K, P

from ega_jax.errors import UserError
from ega_jax.mechanism import TRUTHFUL
from ega_jax.playground.logged import LoggedRequests, Names
from ega_jax.playground.views import Controls, Playground

NUMBER = 4  # Of a request with several ads.
LEVERS = {"alpha": 1.5, "beta": 0.7, "kappa": 0.3, "reserve": 0.0, "max_ads": K}


@functools.cache
def playground():
    requests = jax.tree.map(np.asarray, requests_with_ads_last(3, 6))
    creatives = np.asarray(tiny_mechanism().system.items.catalogue.poi_creatives)
    names = Names([f"place {poi}" for poi in range(P)], ["food"] * P, creatives)
    return Playground(tiny_mechanism(), LoggedRequests(np.arange(6), requests), names)


def controls(rule="gsp", number=NUMBER, **changes):
    ad = playground().requests.ads(number)[0]
    return Controls(number, rule, LEVERS | changes, ad, 4.0)


def served(chosen):
    """Slate and menu of the request of some controls."""
    request = playground().requests.request(chosen.number, chosen.ad, chosen.bid)
    answer = tiny_mechanism().allocate_with_menu(request, chosen.rule, **chosen.levers)
    return jax.device_get(answer)


@pytest.mark.parametrize("rule", ["gsp", "threshold", TRUTHFUL])
def test_slots_are_those_of_the_mechanism(rule):
    chosen = controls(rule)
    view, (slate, _) = playground().view(chosen), served(chosen)
    filled = np.flatnonzero(slate.items[0] >= 0)
    assert [slot.item.title for slot in view.slots] == [
        f"place {poi}" for poi in slate.items[0][filled]
    ]
    for slot, place in zip(view.slots, filled, strict=True):
        assert slot.is_ad == slate.is_ad[0, place]
        np.testing.assert_allclose(slot.price, slate.price_per_click[0, place], rtol=1e-4)
        np.testing.assert_allclose(slot.why["price"][view.charged], slot.price, rtol=1e-3)
        image = playground().names.image(slate.items[0, place], slate.creatives[0, place])
        assert slot.item.image == image
    assert any(slot.is_ad for slot in view.slots)


def test_totals_are_sums_over_the_slots():
    view = playground().view(controls())
    clicks, revenue, value = 0.0, 0.0, 0.0
    for slot in view.slots:
        clicks += slot.pctr
        revenue += slot.pctr * slot.price
        value += slot.pctr * slot.why["bid"]
    np.testing.assert_allclose(
        [view.clicks, view.revenue, view.value], [clicks, revenue, value], rtol=1e-5
    )
    assert 0 < view.revenue < view.value


def test_candidates_are_ads_by_bid_then_organic_items():
    chosen = controls()
    view, (slate, menu) = playground().view(chosen), served(chosen)
    request = playground().requests.request(chosen.number, chosen.ad, chosen.bid)
    ads = [each for each in view.candidates if each.is_ad]
    assert [each.bid for each in ads] == sorted(request.bid[0][request.is_ad[0]], reverse=True)
    assert view.candidates[: len(ads)] == ads
    assert [each.bid for each in view.candidates if each.is_own] == [4.0]
    shown = {each.item.title: each.slot for each in view.candidates if each.slot}
    assert shown == {
        f"place {poi}": slot + 1 for slot, poi in enumerate(slate.items[0]) if poi >= 0
    }
    for each in view.candidates:
        slates = sum(
            f"place {poi}" == each.item.title
            for row in menu.item[0][menu.where[0]]
            for poi in row
            if poi >= 0
        )
        assert each.slates == slates
    assert view.num_slates == menu.where[0].sum()


def test_new_items_are_those_that_the_usual_slate_does_not_show():
    trained = playground().trained_levers
    ad = playground().first_ad(NUMBER)
    usual = Controls(NUMBER, "threshold", trained, ad, playground().requests.bid(NUMBER, ad))
    view = playground().view(usual)
    assert not any(slot.is_new for slot in view.slots)
    assert next(slot.is_own for slot in view.slots if slot.is_ad)
    without = playground().view(Controls(NUMBER, "threshold", trained | {"max_ads": 0}, ad, 0.0))
    assert not any(slot.is_ad for slot in without.slots)


def test_the_curve_is_that_of_the_ad_of_the_controls():
    chosen = controls("threshold")
    curve, view = playground().curve(chosen), playground().view(chosen)
    here = curve.at(chosen.bid)
    own = [slot for slot in view.slots if slot.is_own]
    assert own
    np.testing.assert_allclose(curve.clicks[here], own[0].pctr, rtol=1e-4)
    np.testing.assert_allclose(curve.price[here], own[0].price, rtol=1e-3)


def test_the_truthful_mode_keeps_a_reserve():
    chosen = controls(TRUTHFUL, reserve=0.5)
    view, curve = playground().view(chosen), playground().curve(chosen)
    prices = [slot.price for slot in view.slots if slot.is_ad]
    assert prices
    assert min(prices) >= 0.5
    assert not curve.clicks[curve.bid < 0.5].any()


def test_levers_out_of_range_are_refused():
    for function in (playground().view, playground().curve):
        with pytest.raises(UserError, match=r"lever alpha is 0\.0"):
            function(controls(alpha=0.0))


def test_a_request_without_ads_has_no_curve():
    batch = playground().requests.batch
    organic = batch.replace(is_ad=np.zeros_like(batch.is_ad), bid=np.zeros_like(batch.bid))
    without = dataclasses.replace(playground(), requests=LoggedRequests(np.arange(6), organic))
    assert without.first_ad(NUMBER) == -1
    assert without.ad_titles(NUMBER) == {}
    controls = Controls(NUMBER, "gsp", LEVERS, -1, 0.0)
    assert without.curve(controls) is None
    assert not any(slot.is_own or slot.is_ad for slot in without.view(controls).slots)


def test_history_is_most_recent_first():
    request = playground().requests.request(NUMBER)
    known = [poi for poi in request.history_poi[0] if poi >= 0]
    titles = [item.title for item in playground().history(NUMBER)]
    assert titles == [f"place {poi}" for poi in reversed(known)]
