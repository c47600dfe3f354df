"""The search for the best slate against a list of every slate, on a small market's truth."""

import dataclasses

import numpy as np
import pytest
from every_slate import every_dress, every_slate, exhaustive
from small_market import MARKET, catalogue_of, small_market

from ega_jax.data.pipeline import eval_batches
from ega_jax.evaluation.attainable import (
    Attainable,
    best_creatives,
    best_slates,
    improved,
)
from ega_jax.evaluation.samples import samples_of

K, D = MARKET.num_slots, 40
EVERYONE = np.arange(D)


@pytest.fixture(scope="module")
def sample():
    """Requests of the log, every other one of which has too few organic items for a slate."""
    dataset, truth = small_market()
    batches = eval_batches(dataset, "test", batch_size=D, history_length=4)
    (found,) = samples_of([next(iter(batches))], truth, catalogue_of(dataset).poi_creatives, K)
    rng, request = np.random.default_rng(0), found.request
    missing = ~request.is_ad & (rng.random(request.item.shape) < 0.8) & (EVERYONE % 2)[:, None]
    return dataclasses.replace(
        found, request=request.replace(item=np.where(missing, -1, request.item))
    )


@pytest.fixture(scope="module")
def allowed(sample):
    """Some requests may show all ads, some few, some none."""
    rng = np.random.default_rng(1)
    return sample.request.is_ad & (rng.random(sample.request.item.shape) < (EVERYONE % 5)[:, None])


@pytest.fixture(scope="module")
def listed(sample, allowed):
    """Up to four allowed ads of each request in an order of their own."""
    rng = np.random.default_rng(2)
    order = [rng.permutation(np.flatnonzero(row))[:4] for row in allowed]
    return np.array([np.pad(x, (0, 4 - len(x)), constant_values=-1) for x in order])


def slates_of(sample, allowed, listed=None):
    """Every slate of each request."""
    for row in EVERYONE:
        ads = np.flatnonzero(allowed[row]) if listed is None else listed[row][listed[row] >= 0]
        yield list(every_slate(sample.request, row, list(ads), K, listed is not None))


@pytest.mark.parametrize("kind", ["any order", "listed"])
def test_it_finds_the_best_of_all_slates(sample, allowed, listed, kind):
    listed = listed if kind == "listed" else None
    found = best_slates(sample, allowed, listed)
    every = list(slates_of(sample, allowed, listed))
    best = np.array([exhaustive(sample, row, slates) for row, slates in enumerate(every)])
    assert np.all(found.value <= best * (1 + 1e-5))
    reached = found.value >= best * (1 - 1e-5)
    assert reached.mean() >= 0.95
    assert found.value.sum() >= 0.995 * best.sum()
    sizes = {(np.array(slates[0]) >= 0).sum() for slates in every}
    assert len(sizes) > 1, "some slates cannot be filled"
    for row, slates in enumerate(every):
        assert found.candidate[row].tolist() in slates
        assert tuple(found.creative[row]) in every_dress(sample, row, found.candidate[row])


def test_a_limit_of_ads_holds(sample, allowed):
    """The best slate with at most one ad, where the organic items fill the other slots."""
    found = best_slates(sample, allowed, max_ads=1)
    is_ad = lambda row, slate: np.asarray(sample.request.is_ad)[row][slate] & (slate >= 0)
    compared = 0
    for row, slates in enumerate(slates_of(sample, allowed)):
        assert is_ad(row, found.candidate[row]).sum() <= 1
        kept = [slate for slate in slates if is_ad(row, np.array(slate)).sum() <= 1]
        if kept and min(slates[0]) >= 0:
            best = exhaustive(sample, row, kept)
            assert found.value[row] == pytest.approx(best, rel=1e-5)
            compared += 1
    assert compared > 3


def test_a_slate_is_worth_the_bids_of_its_true_clicks(sample, allowed):
    found = best_slates(sample, allowed)
    request = sample.request
    for row, slate in enumerate(found.candidate):
        shown = slate >= 0
        item = np.where(shown, request.item[row][slate], -1)
        is_ad = shown & request.is_ad[row][slate]
        click = sample.judge.truth.responses(
            sample.judge.session[row : row + 1], item[None], found.creative[row][None], is_ad[None]
        ).click_poi[0]
        value = sum(
            float(click[k]) * float(request.bid[row, n]) for k, n in enumerate(slate) if is_ad[k]
        )
        assert found.value[row] == pytest.approx(value, rel=1e-5)


def random_start(sample, allowed, listed):
    """Slates drawn from all of them, with creatives drawn likewise."""
    rng = np.random.default_rng(3)
    draw = lambda options: options[rng.integers(len(options))]
    slates = [draw(slates) for slates in slates_of(sample, allowed, listed)]
    dresses = [draw(list(every_dress(sample, row, s))) for row, s in enumerate(slates)]
    slates, dresses = np.array(slates), np.array(dresses)
    return Attainable(slates, dresses, sample.values(EVERYONE, slates, dresses))


def test_nothing_found_is_worth_less_than_the_start(sample, allowed, listed, monkeypatch):
    start = random_start(sample, allowed, listed)
    found = improved(sample, start, allowed, listed)
    assert np.all(found.value >= start.value * (1 - 1e-6))
    assert found.value.sum() > start.value.sum() * 1.05
    monkeypatch.setattr("ega_jax.evaluation.attainable._GAIN", 1e30)
    kept = improved(sample, found, allowed, listed)
    np.testing.assert_array_equal(kept.candidate, found.candidate)
    np.testing.assert_allclose(kept.value, found.value, rtol=1e-6)


def test_a_start_that_breaks_the_rules_is_refused(sample, allowed, listed):
    start = random_start(sample, sample.request.is_ad, None)
    for mask, order in ((allowed, None), (sample.request.is_ad, listed)):
        with pytest.raises(ValueError, match="breaks the rules"):
            improved(sample, start, mask, order)


def test_the_better_of_two_slates_is_taken_request_by_request(sample, allowed):
    one, other = (random_start(sample, mask, None) for mask in (allowed, sample.request.is_ad))
    both = one.or_better(other)
    for row in EVERYONE:
        best = one if one.value[row] >= other.value[row] else other
        assert both.value[row] == best.value[row]
        assert both.candidate[row].tolist() == best.candidate[row].tolist()
        assert both.creative[row].tolist() == best.creative[row].tolist()
    assert np.any(both.value > one.value)
    assert np.any(both.value > other.value)


def test_an_item_alone_is_the_only_one_of_its_slate(sample):
    row, candidate = 3, int(np.flatnonzero(sample.request.is_ad[3])[1])
    for place, creative in enumerate(sample.creatives[row, candidate]):
        slate = np.full((1, K), -1)
        slate[0, 0] = candidate
        expected = 0.0
        if creative >= 0:
            dressed = np.where(slate >= 0, creative, -1)
            expected = sample.clicks(np.array([row]), slate, dressed)[0, 0]
        assert sample.clicks_alone[row, candidate, place] == pytest.approx(expected, rel=1e-5)


def test_the_best_creatives_of_given_slates(sample, allowed):
    start = random_start(sample, allowed, None)
    found = best_creatives(sample, start.candidate, start.creative)
    np.testing.assert_array_equal(found.candidate, start.candidate)
    best = [exhaustive(sample, row, [slate]) for row, slate in enumerate(start.candidate)]
    assert np.all(found.value <= np.array(best) * (1 + 1e-5))
    assert np.mean(found.value >= np.array(best) * (1 - 1e-5)) >= 0.95
    assert np.any(found.value > start.value * 1.01)


def test_blank_rows_are_no_requests(sample):
    fields = {name: np.asarray(getattr(sample.request, name)) for name in ("item", "is_ad", "bid")}
    history = {name: getattr(sample.request, name) for name in ("history_poi", "history_creative")}
    batch = fields | history | {"session": sample.judge.session}
    blank = batch | {"item": np.where((EVERYONE < 3)[:, None], -1, fields["item"])}
    (kept,) = samples_of([blank], sample.judge.truth, sample.poi_creatives, K)
    np.testing.assert_array_equal(kept.judge.session, sample.judge.session[3:])
    np.testing.assert_array_equal(kept.request.bid, sample.request.bid[3:])
