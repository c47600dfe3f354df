"""Ceilings on a small market's truth: what a model sees, by enumeration where possible."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from every_slate import every_slate, exhaustive
from small_market import MARKET, catalogue_of, small_market

from ega_jax.baselines import ceilings
from ega_jax.baselines.ceilings import Limits, best_of_menu, candidates, search_of, valued
from ega_jax.data.pipeline import eval_batches
from ega_jax.evaluation.samples import samples_of

K, D = MARKET.num_slots, 24
EVERYONE = np.arange(D)
LIMITS = Limits(MARKET.max_ads, 0.0)


@pytest.fixture(scope="module")
def sample():
    dataset, truth = small_market()
    batches = eval_batches(dataset, "test", batch_size=D, history_length=4)
    (found,) = samples_of([next(iter(batches))], truth, catalogue_of(dataset).poi_creatives, K)
    return found


class Constant:
    """Predicts the same for every item that is shown."""

    at_once, chance = 512, 0.25

    def clicks(self, row, item, creative, is_ad):
        return np.where(item >= 0, self.chance, 0.0)


def ads_of(sample, found):
    """Which slots `[D, K]` of the slates found hold an ad, and their bids."""
    there = found.candidate >= 0
    pick = lambda x: np.asarray(x)[EVERYONE[:, None], found.candidate]
    is_ad = there & pick(sample.request.is_ad)
    return is_ad, np.where(is_ad, pick(sample.request.bid), 0.0)


def test_the_truth_as_the_model_finds_what_is_attainable(sample):
    by_truth = search_of(sample)(LIMITS, [])
    seen = search_of(dataclasses.replace(sample), 40)(LIMITS, [])
    np.testing.assert_allclose(seen.value, by_truth.value, rtol=1e-6)
    one_each = search_of(sample, 1)(LIMITS, [])
    assert np.all(one_each.value <= by_truth.value * (1 + 1e-6))
    assert one_each.value.sum() < 0.99 * by_truth.value.sum()


@pytest.mark.parametrize("limits", [LIMITS, Limits(1, 0.0), Limits(K, 1.5)])
def test_a_constant_model_gives_the_value_by_bids(sample, limits):
    constant = dataclasses.replace(sample, judge=Constant())
    found = search_of(constant, 16)(limits, [])
    is_ad, bid = ads_of(sample, found)
    assert np.all(is_ad.sum(1) <= limits.max_ads)
    assert np.all(bid[is_ad] >= limits.reserve)
    for row in EVERYONE:
        bids = sample.request.bid[row][sample.request.is_ad[row]]
        best = np.sort(bids[bids >= limits.reserve])[::-1][: limits.max_ads].sum()
        assert found.value[row] == pytest.approx(Constant.chance * best, rel=1e-5)
    true = valued(sample, found.candidate, found.creative).value
    top = search_of(sample)(limits, []).value
    assert np.all(true <= top * (1 + 1e-6))
    assert np.all((true > 0) == is_ad.any(1))


def test_few_ads_are_the_best_alone_and_those_of_the_fewest_clicks(sample):
    allowed, ads = LIMITS.allowed(sample), sample.request.is_ad
    kept = ceilings._most_promising(sample, allowed, 2)
    for row in EVERYONE:
        own = np.flatnonzero(ads[row])
        fewest = [min(sample.clicks_alone[row, n][sample.creatives[row, n] >= 0]) for n in own]
        best = own[np.argsort(-sample.worth_alone[row, own])[:2]]
        weak = own[np.argsort(fewest)[:2]]
        assert set(np.flatnonzero(kept[row])) == {*best, *weak}


def test_a_slate_to_start_from_may_have_other_ads(sample):
    """The shown slate holds ads that a search of few ads does not try by itself."""
    widest = search_of(sample)(LIMITS, [])
    narrow = search_of(sample, 1)
    found = narrow(LIMITS, [widest])
    np.testing.assert_allclose(found.value, widest.value, rtol=1e-6)
    assert narrow(LIMITS, []).value.sum() < found.value.sum()


def test_the_search_from_its_own_slates_is_done_once_per_limits(sample, monkeypatch):
    searched = []
    own = ceilings.best_slates
    monkeypatch.setattr(ceilings, "best_slates", lambda *a, **k: searched.append(k) or own(*a, **k))
    search = search_of(sample)
    first = search(LIMITS, [])
    again = search(Limits(MARKET.max_ads, 0.0), [first])
    np.testing.assert_array_equal(again.value, first.value)
    assert len(searched) == 1
    limited = search(Limits(1, 0.0), [])
    assert limited.value.sum() < first.value.sum()
    assert len(searched) == 2


def test_one_ad_by_enumeration(sample):
    """The attainable value with one ad, and of ads that bid enough."""
    limits = Limits(1, float(np.median(sample.request.bid[sample.request.is_ad])))
    found = search_of(sample)(limits, [])
    request, reached = sample.request, 0
    for row in EVERYONE[:8]:
        ads = np.flatnonzero(request.is_ad[row] & (request.bid[row] >= limits.reserve))
        slates = every_slate(request, row, list(ads), K)
        slates = [slate for slate in slates if np.isin(slate, ads).sum() <= 1]
        best = exhaustive(sample, row, slates)
        assert found.value[row] <= best * (1 + 1e-5)
        reached += found.value[row] >= best * (1 - 1e-5)
    assert reached >= 7


def test_the_best_of_a_menu_by_a_loop(sample):
    """Menus of five random slates, some of which are none."""
    rng = np.random.default_rng(0)
    every = [list(every_slate(sample.request, row, list(range(3)), K)) for row in EVERYONE]
    slates = np.array([[s[rng.integers(len(s))] for _ in range(5)] for s in every])
    at = lambda x: np.asarray(x)[EVERYONE[:, None, None], slates]
    item, is_ad = at(sample.request.item), at(sample.request.is_ad)
    creative, where = at(sample.creatives)[..., 0], rng.random((D, 5)) < 0.7
    menu = SimpleNamespace(item=item, is_ad=is_ad, creative=creative, where=where)
    np.testing.assert_array_equal(candidates(sample, item, is_ad), slates)
    shown = valued(sample, slates[:, 0], creative[:, 0])
    found = best_of_menu(sample, menu, shown)
    for row in EVERYONE:
        of_row = np.full(5, row), slates[row], creative[row]
        values = np.where(where[row], sample.values(*of_row), -np.inf)
        expected = max(values.max(), shown.value[row])
        assert found.value[row] == pytest.approx(expected, rel=1e-6)
    assert np.any(found.value > shown.value)
