"""Prices of allocated slates: what the network sees, Clarke's price, the table of reports."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import K, N, alone, levers, one, random_requests, serve, tiny_ega, with_beams

from ega_jax.auction.counterfactuals import (
    NUM_RIVALS,
    Counterfactuals,
    best_value_without,
    counterfactuals,
    matching_bids,
    of_the_menu,
    probed_myerson_price,
)
from ega_jax.auction.outcomes import tabulate_request
from ega_jax.auction.pricing import RULES, PricingConfig, context_of, prices
from ega_jax.auction.system import Bidders, Menu, allocation_of
from ega_jax.payment import network, rules
from ega_jax.payment.network import PaymentConfig
from ega_jax.reward.model import Predictions

PRICING = PricingConfig(hidden=(8, 4), probes=(0.0, 1.0, 2.0))
REQUESTS = random_requests(7, 16)


@functools.cache
def few():
    """A search of few beams."""
    return with_beams(tiny_ega(), 6)


def unknown(shape):
    """Counterfactuals of ads that no other report would show."""
    at_probes = jnp.zeros((*shape, len(PRICING.probes)))
    matching = jnp.zeros((*shape, NUM_RIVALS))
    return Counterfactuals(jnp.zeros(shape), matching, at_probes, at_probes, at_probes)


@functools.cache
def networks():
    """Fresh networks of both heads."""
    _, *found = serve(few(), one(REQUESTS, slice(0, 1)), levers())
    context = jax.vmap(lambda *x: context_of(levers(), *x))(*found, unknown((1, K)))
    key = jax.random.key(3)
    trees = {h: network.init(key, PaymentConfig(h, PRICING.hidden), context) for h in network.HEADS}
    shift = lambda x: x + 0.1 * jax.random.normal(key, x.shape)
    return jax.tree.map(shift, trees)


@jax.jit
def priced(system, networks, requests, levers):
    def one(request):
        prepared = system.prepare(request, levers)
        shown, menu = system.allocate(prepared)
        known, _, _ = counterfactuals(system, PRICING.probed, prepared, shown.ads, menu)
        return shown, known, prices(networks, PRICING, levers, shown, menu, known)

    return jax.vmap(one)(requests)


@pytest.mark.parametrize("reserve", [0.0, 0.8])
def test_every_rule_charges_between_the_reserve_and_the_bid(reserve):
    shown, _, every = priced(few(), networks(), REQUESTS, levers(reserve=reserve))
    assert every.keys() == RULES.keys()
    for rule in RULES:
        price = np.asarray(every[rule])
        assert (price[~shown.is_ad] == 0).all(), rule
        assert (price <= shown.bid).all(), rule
        assert (price[shown.is_ad] >= np.float32(reserve)).all(), rule
        assert (price[shown.is_ad] > 0).any(), rule
    first = every["first_price"]
    np.testing.assert_array_equal(first, np.where(shown.is_ad, shown.bid, 0))


def test_the_probed_bids_alone_set_a_price():
    shown, known, every = priced(few(), networks(), REQUESTS, levers())
    owed = probed_myerson_price(known, shown.prediction.click_poi)
    expected = np.where(shown.is_ad, np.minimum(owed, shown.bid), 0.0)
    np.testing.assert_allclose(every["myerson_probed"], expected, rtol=1e-6)
    assert (expected[shown.is_ad] > 0).any()
    assert (expected < shown.bid)[shown.is_ad].any()
    without_probes = PricingConfig(probes=(), heads=("rate",)).rules
    assert set(RULES) - set(without_probes) == {"myerson_probed", "threshold"}


def test_the_network_sees_the_rivals_and_not_the_own_bid():
    """Raising the own bid, with the slate as it was, changes nothing that the network sees."""
    request, served = one(REQUESTS, 3), serve(few(), one(REQUESTS, slice(3, 4)), levers())
    quality = np.asarray(alone(few(), served[0], one(REQUESTS, slice(3, 4)))[1][0])
    _, shown, menu = one(served, 0)
    slot = int(np.argmax(shown.is_ad))
    assert shown.is_ad[slot]
    own, bid = int(shown.candidate[slot]), jnp.asarray(request.bid)
    known = unknown((K,)).replace(without=jnp.full(K, 0.9 * menu.value.max()))

    @jax.jit
    def contexts(factor):
        raised = lambda ad, bid: jnp.where(ad == own, factor * bid, bid)
        rivals = menu.rivals.replace(bid=raised(menu.rivals.ad, menu.rivals.bid))
        loud = menu.replace(bid=raised(menu.candidate, menu.bid), rivals=rivals)
        slate = shown.replace(bid=raised(shown.candidate, shown.bid))
        matching = jax.vmap(matching_bids, in_axes=(None, 0))(rivals, slate.ads)
        return context_of(levers(), slate, loud, known.replace(matching=matching))

    before, after = contexts(1.0), contexts(9.0)
    for name in network.Context.__dataclass_fields__:
        mine = getattr(before, name)[slot]
        np.testing.assert_allclose(mine, getattr(after, name)[slot], rtol=1e-5)
    found = np.asarray(menu.candidate)[np.asarray(menu.where)].ravel().tolist()
    rivals = [
        float(bid[j]) * quality[j] / quality[own]
        for j in set(found) - {own, -1}
        if request.is_ad[j]
    ]
    assert rivals
    *seen, cost, clarke, posted = np.asarray(before.others[slot])
    assert posted == 0
    np.testing.assert_allclose(before.scale[slot], sum(seen) / NUM_RIVALS, rtol=1e-5)
    expected = sorted(rivals, reverse=True) + [0.0] * NUM_RIVALS
    np.testing.assert_allclose(seen, expected[: len(seen)], rtol=1e-5)
    to_others = [
        sum(float(bid[j]) * p for j, p in zip(slate, pctr, strict=True) if j not in (own, -1))
        for slate, pctr in zip(menu.candidate.tolist(), menu.pctr.tolist(), strict=True)
    ]
    best = int(np.argmax(menu.value))
    lost = max(to_others) - to_others[best]
    np.testing.assert_allclose(cost, lost / float(menu.pctr[best, slot]), rtol=1e-4, atol=1e-5)
    lost = max(*to_others, 0.9 * float(menu.value[best])) - to_others[best]
    np.testing.assert_allclose(clarke, lost / float(menu.pctr[best, slot]), rtol=1e-4, atol=1e-5)


def test_clarke_on_a_bid_free_menu_is_the_rule_on_its_click_rates():
    """Against `rules.clarke` with the menu's slates and, for kappa, a bidder of its own."""
    settings = levers(bid_free=True, kappa=0.7)
    _, _, menus = serve(few(), REQUESTS, settings)
    for row in range(6):
        menu, bid = one(menus, row), jnp.asarray(REQUESTS.bid[row])
        kept = np.flatnonzero(menu.where)
        clicks = np.zeros((kept.size, N + 1))
        for m, beam in enumerate(kept):
            for slot, item in enumerate(np.asarray(menu.candidate[beam])):
                if item >= 0:
                    clicks[m, item] = menu.pctr[beam, slot]
                    clicks[m, N] += menu.pctr[beam, slot]
        chosen, total = rules.clarke(np.append(bid, 0.7), clicks)
        best = int(jnp.argmax(menu.value))
        assert kept[int(chosen)] == best
        without = jax.jit(best_value_without)(menu, settings, menu.candidate[best])
        for slot, item in enumerate(np.asarray(menu.candidate[best])):
            if item >= 0:
                marginal = menu.value[best] - without[slot]
                charged = bid[item] * menu.pctr[best, slot] - marginal
                np.testing.assert_allclose(charged, total[item], atol=2e-6)


def menu_with_reserve(bid):
    """Three slates of an ad that bids so much, with others' values of 10, 9.9 and 9.1.

    The ad has no click, .1 and .3 of them; its reserve is 3.
    """
    candidate = jnp.array([[1, -1], [1, 0], [1, 0]])
    pctr = jnp.array([[1.0, 0.0], [0.99, 0.1], [0.91, 0.3]])
    bids = jnp.where(candidate == 1, 10.0, jnp.where(candidate == 0, bid, 0.0))
    is_ad, nothing = candidate >= 0, jnp.zeros((3, 2))
    return Menu(
        candidate=candidate,
        item=candidate,
        creative=candidate,
        is_ad=is_ad,
        bid=bids,
        reserve=jnp.where(candidate == 0, 3.0, 0.0),
        quality=pctr,
        pctr=pctr,
        value=(bids * pctr).sum(-1),
        where=jnp.ones(3, bool),
        log_z=nothing,
        states=nothing[..., None],
        rivals=Bidders(*(x.reshape(-1) for x in (candidate, bids, pctr, candidate))),
    )


@jax.jit
def paid_with_reserve(bid):
    """Clicks of the ad, what it pays per impression, and its price by Clarke without reserve."""
    menu, config = menu_with_reserve(bid), PricingConfig(heads=(), probes=())
    best = jnp.argmax(menu.value)
    click = menu.pctr[best]
    prediction = Predictions(click, click, click, jnp.zeros((2, 1)))
    shown = allocation_of(menu, best, menu.creative[best], prediction)
    known = of_the_menu(menu, levers(), shown.ads, config.probed)
    price = prices({}, config, levers(), shown, menu, known)["clarke"][1]
    plain = dataclasses.replace(menu, reserve=jnp.zeros((3, 2)))
    shown = dataclasses.replace(shown, reserve=jnp.zeros(2))
    known = of_the_menu(plain, levers(), shown.ads, config.probed)
    return click[1], price, prices({}, config, levers(), shown, plain, known)["clarke"][1]


def test_truth_is_best_under_a_reserve():
    """Also where Clarke's price, raised to the reserve afterwards, rewards a lie."""
    value, bids = 3.5, np.concatenate([[3.5], np.linspace(3.0, 12.0, 181)])
    clicks, price, clarke = np.asarray([paid_with_reserve(jnp.float32(bid)) for bid in bids]).T
    utility = clicks * (value - price)
    assert utility[0] == pytest.approx(0.05, abs=1e-5)
    assert utility.max() <= utility[0] + 1e-5
    assert (price[clicks > 0] >= 3.0 - 1e-5).all()
    assert {round(float(x), 4) for x in clicks} == {0.1, 0.3}
    raised = clicks * (value - np.maximum(clarke, 3.0))
    assert raised[0] == pytest.approx(0.05, abs=1e-5)
    assert raised.max() == pytest.approx(0.15, abs=1e-5)


@pytest.mark.parametrize("reserve", [0.0, 0.8])
def test_the_best_loser_of_gsp_is_an_ad_of_the_menu(reserve):
    """The shown ads in the order of scores, then the best ad of the menu that is not shown."""
    settings = levers(reserve=reserve, max_ads=2)
    prepared, _, menus = serve(few(), REQUESTS, settings)
    quality = np.asarray(alone(few(), prepared, REQUESTS)[1])
    shown, _, every = priced(few(), networks(), REQUESTS, settings)
    last_pays = 0
    for row in range(16):
        score = np.float64(REQUESTS.bid[row]) * quality[row]
        found = np.asarray(menus.candidate[row])[np.asarray(menus.where[row])].ravel().tolist()
        slate = np.asarray(shown.candidate[row]).tolist()
        ads = [c for c in slate if c >= 0 and REQUESTS.is_ad[row, c]]
        losing = [score[c] for c in set(found) - {-1, *slate} if REQUESTS.is_ad[row, c]]
        ads = sorted(ads, key=lambda c: -score[c])
        last_pays += bool(ads) and max(losing, default=0.0) > 0
        for c, below in zip(ads, [*score[ads[1:]], max(losing, default=0.0)], strict=False):
            bid = float(REQUESTS.bid[row, c])
            expected = np.clip(below / quality[row, c], min(reserve, bid), bid)
            price = every["gsp"][row, slate.index(c)]
            np.testing.assert_allclose(price, expected, rtol=1e-4, atol=1e-6)
    assert last_pays > 0


def test_a_table_holds_what_each_report_leads_to():
    request, num_reports = one(REQUESTS, 3), 5
    table = jax.jit(
        lambda request, key: tabulate_request(few(), PRICING, request, levers(), key, num_reports)
    )(request, jax.random.key(0))
    alone = one(REQUESTS, slice(3, 4))
    shown = serve_bids(alone, request.bid[None])[0]
    np.testing.assert_array_equal(table.where, shown.is_ad)
    for slot in np.flatnonzero(shown.is_ad):
        own = int(shown.candidate[slot])
        value = float(request.bid[own])
        np.testing.assert_allclose(table.truth.bid[slot], value)
        reports = np.asarray(table.misreports.bid[slot])
        bounds = np.linspace(0, 2 * value, num_reports + 1)
        assert ((reports >= bounds[:-1]) & (reports <= bounds[1:])).all()
        np.testing.assert_allclose(
            table.truth.clicks[slot], shown.prediction.click_poi[slot], rtol=1e-5
        )
        for j, report in enumerate(reports):
            bid = np.where(np.arange(N) == own, report, request.bid)
            again = serve_bids(alone, bid[None])[0]
            place = np.flatnonzero(np.asarray(again.candidate) == own)
            clicks = again.prediction.click_poi[place[0]] if place.size else 0.0
            np.testing.assert_allclose(table.misreports.clicks[slot, j], clicks, rtol=1e-5)
    assert table.misreports.clicks.shape == (K, num_reports)


def serve_bids(requests, bid):
    """Allocations of requests under other bids, as a list."""
    _, shown, _ = serve(few(), requests.replace(bid=np.float32(bid)), levers())
    return [jax.tree.map(lambda x, row=row: x[row], shown) for row in range(len(bid))]
