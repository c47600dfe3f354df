"""Every field of an explanation against its definition."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_mechanism import filled_up, tiny_mechanism
from tiny_models import C, K, N, P, R, T, W

from ega_jax.auction.pricing import RULES
from ega_jax.generation import generator
from ega_jax.generation.reports import absent
from ega_jax.types import Request

ALPHA, BETA, KAPPA = 1.5, 0.7, 0.3
SETTINGS = {"alpha": ALPHA, "beta": BETA, "kappa": KAPPA}


@pytest.fixture(autouse=True, scope="module")
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


def pois_with_one_creative():
    """Their creative is the same wherever they stand: a slate's worth follows from its pctr."""
    owned = np.asarray(tiny_mechanism().system.items.catalogue.poi_creatives)
    return np.flatnonzero((owned >= 0).sum(axis=1) == 1)


@functools.cache
def requests():
    """Two requests: organic items and ads; and one with fewer candidates than slots."""
    rng = np.random.default_rng(4)
    pois = pois_with_one_creative()
    item = np.stack([rng.permutation(pois)[:N] for _ in range(2)]).astype(np.int32)
    item[1, 2:] = -1
    is_ad = np.array([[True, False, True, True, False, True], [True, False, *[False] * 4]])
    bid = np.float32([[2.0, 0.0, 0.5, 1.5, 0.0, 1.0], [3.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    history = rng.integers(0, P, (2, T)).astype(np.int32)
    return Request(history, rng.integers(0, R, (2, T)).astype(np.int32), item, is_ad, bid)


@functools.cache
def explained(row=0):
    return jax.device_get(tiny_mechanism().explain(requests(), row, **SETTINGS))


def served(bids, rule=None, **changes):
    """The first request's slates under bids `[R, N]`."""
    many = filled_up(jax.tree.map(lambda x: x[0], requests()), bids)
    return jax.device_get(tiny_mechanism().allocate(many, rule, **SETTINGS, **changes))


def candidates_shown():
    """Candidate of each slot of the first request's slate."""
    items = requests().item[0].tolist()
    return [items.index(item) for item in explained().items.tolist()]


@jax.jit
def logits_along(decoder, history_poi, history_creative, catalogue, codes):
    """`[K, C, W]` logits of every code along a slate, by the network itself."""

    def run(model):
        memory = model.encode(history_poi, history_creative, catalogue)
        return model.poi.logits(model.poi_states(memory, codes))

    return generator.apply(decoder.params, decoder.config, run)


def on_offer(taken):
    """Candidates that may stand after others: ads not shown yet, and the next organic item."""
    request = jax.tree.map(lambda x: x[0], requests())
    free = [n for n in range(N) if request.item[n] >= 0 and n not in taken]
    organic = [n for n in free if not request.is_ad[n]]
    return [n for n in free if request.is_ad[n]] + organic[:1]


def test_tokens_are_weighted_by_the_best_bid_that_carries_them():
    """Logits, token bids (prefix scope), weights (21) and probabilities (22), with loops."""
    found, request = explained(), jax.tree.map(lambda x: x[0], requests())
    system, shown = tiny_mechanism().system, candidates_shown()
    codes = np.asarray(system.items.catalogue.poi_codes)[request.item]
    np.testing.assert_array_equal(found.codes, codes[shown])
    history = request.history_poi, request.history_creative
    logits = np.float64(
        logits_along(system.decoder, *history, system.items.catalogue, jnp.asarray(found.codes))
    )
    assert logits.shape == (K, C, W)
    for slot, candidate in enumerate(shown):
        offered, log_z = on_offer(shown[:slot]), 0.0
        assert candidate in offered
        for layer in range(C):
            offered = [n for n in offered if (codes[n, :layer] == codes[candidate, :layer]).all()]
            weights = {}
            for code in {int(codes[n, layer]) for n in offered}:
                bid = max(float(request.bid[n]) for n in offered if codes[n, layer] == code)
                weights[code] = (bid, bid**ALPHA + BETA)
            own = int(codes[candidate, layer])
            bid, weight = weights[own]
            total = sum(w * np.exp(logits[slot, layer, code]) for code, (_, w) in weights.items())
            log_z += np.log(weight * np.exp(logits[slot, layer, own]) / total)
            np.testing.assert_allclose(found.logit[slot, layer], logits[slot, layer, own], 1e-4)
            np.testing.assert_allclose(found.token_bid[slot, layer], bid, rtol=1e-6)
            np.testing.assert_allclose(found.weight[slot, layer], weight, rtol=1e-5)
        np.testing.assert_allclose(found.log_z[slot], log_z, rtol=1e-4, atol=1e-5)
    assert (found.token_bid > 0).any()


def test_what_is_explained_is_what_is_served():
    found, bids = explained(), requests().bid[:1]
    for rule in RULES:
        slate = jax.tree.map(lambda x: x[0], served(bids, rule))
        np.testing.assert_array_equal(found.items, slate.items)
        np.testing.assert_array_equal(found.creatives, slate.creatives)
        np.testing.assert_array_equal(found.is_ad, slate.is_ad)
        np.testing.assert_allclose(found.pctr, slate.pctr, rtol=1e-5)
        price = slate.price_per_click
        np.testing.assert_allclose(found.price[rule], price, rtol=1e-4, atol=2e-5, err_msg=rule)
    np.testing.assert_array_equal(found.bid, bids[0][candidates_shown()])
    assert found.price.keys() == set(RULES)
    assert found.is_ad.sum() > 0


@jax.jit
def searched(system, levers, request, candidate):
    """The menu of a request, and that of a search without a candidate."""
    prepared = system.prepare(request, levers)
    return system.find_menu(prepared), system.find_menu(prepared, absent(candidate))


@pytest.mark.parametrize(("rule", "row"), [("threshold", 0), ("truthful", 1)])
def test_a_contribution_is_what_the_slate_is_worth_more_than_the_best_without_the_item(rule, row):
    """Equation (31): the best of the menu, or of a search where all of the menu hold the item."""
    mechanism, request = tiny_mechanism(), jax.tree.map(lambda x: x[row], requests())
    found = jax.device_get(mechanism.explain(requests(), row, rule, **SETTINGS))
    levers = dataclasses.replace(mechanism.levers, **SETTINGS, bid_free=rule == "truthful")
    items, in_menu = request.item.tolist(), []
    for slot in np.flatnonzero(found.items >= 0):
        candidate = items.index(found.items[slot])
        menu, again = searched(mechanism.system, levers, request, candidate)
        lacks = np.asarray(menu.where) & ~(np.asarray(menu.candidate) == candidate).any(axis=-1)
        in_menu.append(bool(lacks.any()))
        without = np.asarray(menu.value)[lacks] if lacks.any() else np.asarray(again.value)
        expected = float(menu.value.max() - without.max())
        np.testing.assert_allclose(found.contribution[slot], expected, rtol=1e-4, atol=1e-6)
    assert found.contribution[found.items >= 0].any()
    assert (found.is_ad[: len(in_menu)].all(), any(in_menu)) == ((True, True), (False, False))[row]


def test_the_lowest_bid_keeps_the_slot_and_a_lower_one_does_not():
    found, request = explained(), jax.tree.map(lambda x: x[0], requests())
    shown = candidates_shown()
    assert (found.lowest_bid[~found.is_ad] == 0).all()
    assert (found.lowest_bid <= found.bid).all()
    ads = np.flatnonzero(found.is_ad)
    keeps = {}
    for factor in (1.001, 0.999):
        bids = np.repeat(request.bid[None], ads.size, axis=0)
        bids[np.arange(ads.size), np.array(shown)[ads]] = factor * found.lowest_bid[ads]
        slates = served(bids)
        keeps[factor] = slates.items[np.arange(ads.size), ads] == found.items[ads]
    assert keeps[1.001].all()
    bound = found.lowest_bid[ads] > 0
    assert bound.any()
    assert not keeps[0.999][bound].any()


def test_empty_slots_explain_nothing():
    found = explained(1)
    assert (found.items >= 0).tolist() == [True, True, False]
    assert (found.creatives[2], found.pctr[2], found.bid[2], found.log_z[2]) == (-1, 0, 0, 0)
    assert (found.contribution[2], found.lowest_bid[2]) == (0, 0)
    assert all(price[2] == 0 for price in found.price.values())
    assert [slot["slot"] for slot in found.to_dict()] == [0, 1]


@pytest.mark.parametrize("row", [0, 1])
def test_an_explanation_is_plain_data_and_a_figure(row):
    found = explained(row)
    slots = json.loads(json.dumps(found.to_dict()))
    assert len(slots) == (K, 2)[row]
    for slot in slots:
        assert slot["items"] == found.items[slot["slot"]]
        assert slot["price"]["gsp"] == pytest.approx(float(found.price["gsp"][slot["slot"]]))
        assert len(slot["codes"]) == C
        assert isinstance(slot["is_ad"], bool)
    figure = found.plot()
    bars, prices = figure.axes
    assert len(bars.patches) == C * len(slots)
    assert {line.get_label() for line in prices.lines} == {*RULES, "bid", "lowest bid"}
    heights = sum(patch.get_height() for patch in bars.patches)
    weight = np.asarray([slot["weight"] for slot in slots])
    assert heights == pytest.approx(np.log(weight).sum(), rel=1e-5)
    assert bars.get_xticklabels()[0].get_text().startswith(str(slots[0]["items"]))
