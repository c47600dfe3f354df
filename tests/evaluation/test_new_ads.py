"""Old and new ads apart, against loops over every ad; and what an id-based ranker reads."""

import dataclasses

import numpy as np
import pytest

from ega_jax.evaluation.cold_start import FOUND, RankedAds, by_age
from ega_jax.reward.calibration import auc

D, K, A, P, MOST = 40, 3, 30, 50, 2
AGES = {"old": False, "new": True}


@pytest.fixture(scope="module")
def ads():
    rng = np.random.default_rng(0)
    poi = np.stack([rng.permutation(P)[:A] for _ in range(D)]).astype(np.int32)
    shown = np.where(rng.random((D, K)) < 0.7, poi[:, :K], -1)
    poi[rng.random((D, A)) < 0.2] = -1
    return RankedAds(
        shown=shown,
        clicked=rng.random((D, K)) < 0.5,
        shown_rate=rng.random((D, K)),
        poi=poi,
        bid=rng.lognormal(size=(D, A)).astype(np.float32),
        rate=rng.integers(1, 8, (D, A)) / 10,  # Many rates are equal.
        true_rate=rng.random((D, A)),
    )


@pytest.fixture(scope="module")
def is_new():
    return np.arange(P) % 5 == 0


def chance(ads, row, poi):
    """The chance of a random order of equal rates to rank the ad high."""
    there = np.flatnonzero(ads.poi[row] == poi)
    if not len(there):
        return 0.0
    rates = ads.rate[row][ads.poi[row] >= 0]
    own = ads.rate[row, there[0]]
    places = (rates > own).sum() + np.arange((rates == own).sum())
    return (places < FOUND).mean()


def test_a_rate_that_is_no_number_finds_nothing(ads, is_new):
    lost = dataclasses.replace(ads, rate=np.full((D, A), np.nan))
    assert by_age(lost, is_new, MOST)["recall@10_old"] == 0.0


@pytest.mark.parametrize("age", AGES)
def test_clicked_ads_are_found_by_rank(ads, is_new, age):
    figures, found, rate, click = by_age(ads, is_new, MOST), [], [], []
    for row, slot in np.ndindex(D, K):
        poi = ads.shown[row, slot]
        if poi < 0 or is_new[poi] != AGES[age]:
            continue
        rate.append(ads.shown_rate[row, slot])
        click.append(ads.clicked[row, slot])
        if ads.clicked[row, slot]:
            found.append(chance(ads, row, poi))
    assert figures[f"clicks_{age}"] == len(found) > 0
    assert figures[f"recall@10_{age}"] == pytest.approx(np.mean(found))
    assert figures[f"auc_{age}"] == pytest.approx(auc(np.array(rate), np.array(click)))


@pytest.mark.parametrize("age", AGES)
def test_value_is_that_of_the_chosen_ads_over_the_best(ads, is_new, age):
    kept, best = 0.0, 0.0
    for row in range(D):
        places = [a for a in range(A) if ads.poi[row, a] >= 0]
        places = [a for a in places if is_new[ads.poi[row, a]] == AGES[age]]
        value = {a: ads.bid[row, a] * ads.true_rate[row, a] for a in places}
        guess = sorted(places, key=lambda a: -ads.bid[row, a] * ads.rate[row, a])
        kept += sum(value[a] for a in guess[:MOST])
        best += sum(sorted(value.values(), reverse=True)[:MOST])
    assert by_age(ads, is_new, MOST)[f"value_{age}"] == pytest.approx(kept / best)


def test_the_truth_keeps_all_value(ads, is_new):
    perfect = by_age(ads.replace(rate=ads.true_rate), is_new, MOST)
    assert [perfect[f"value_{age}"] for age in AGES] == pytest.approx([1.0, 1.0])


def test_without_truth_or_clicks_nothing_is_claimed(ads, is_new):
    unknown = by_age(ads.replace(true_rate=None), is_new, MOST)
    assert not any(name.startswith("value") for name in unknown)
    silent = by_age(ads.replace(clicked=np.zeros((D, K), bool)), is_new, MOST)
    assert silent["clicks_new"] == 0
    assert np.isnan([silent["auc_new"], silent["recall@10_new"]]).all()
