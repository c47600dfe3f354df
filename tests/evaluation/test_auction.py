"""Scores of hand-made outcomes by plain loops; Myerson's prices; what the truth says of slates."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_market import MARKET, small_market

from ega_jax.auction.pricing import RULES, PricingConfig
from ega_jax.auction.system import Allocation
from ega_jax.evaluation import auction
from ega_jax.evaluation.auction import (
    MODEL_MYERSON,
    MONOTONE_TOLERANCE,
    MYERSON,
    Judged,
    judge,
    myerson_prices,
    non_monotone_share,
    scores,
    systems,
)
from ega_jax.evaluation.misreports import MULTIPLES, Reported, Truthful
from ega_jax.payment import rules
from ega_jax.reward.model import Predictions
from ega_jax.types import Request

D, A, K, PROBES = 8, 4, 3, 6
J = len(MULTIPLES) + PROBES
# All that is asked of it, once patched.
MECHANISM = SimpleNamespace(pricing=PricingConfig(), system=None)
GAMMAS = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0]


def random_judged(seed=0, **changed):
    """Outcomes without any meaning, in which every kind of place occurs."""
    rng = np.random.default_rng(seed)
    shown = np.arange(K) < np.array([3, 2, 3, 1, 3, 3, 3, 0])[:, None]
    is_ad = shown & (rng.random((D, K)) < 0.8)
    where = np.concatenate([is_ad, rng.random((D, A - K)) < 0.7], axis=1)
    value = np.where(where, rng.choice([0.5, 1.0, 3.0], (D, A)), 0.0)
    probes = rng.uniform(0, 2, (D, A, PROBES))
    multiples = np.concatenate([np.broadcast_to(MULTIPLES, (D, A, J - PROBES)), probes], axis=-1)
    bid = multiples * value[..., None]
    every = (*RULES, MYERSON, MODEL_MYERSON)
    fields = {
        "click": np.where(shown, rng.random((D, K)), 0.0),
        "image": np.where(shown, rng.random((D, K)), 0.0),
        "convert": np.where(shown, rng.random((D, K)), 0.0),
        "shown": shown,
        "is_ad": is_ad,
        "price": {rule: np.where(is_ad, rng.random((D, K)), 0.0) for rule in every},
        "value": value,
        "where": where,
        "bid": bid,
        "clicks": rng.random((D, A, J)) * (rng.random((D, A, J)) < 0.8),
        "charge": {rule: bid * rng.random((D, A, J)) for rule in every},
    }
    return Judged(**fields | changed)


def psi_by_loop(judged, rule, ads, multiples):
    """Ratio of sums, mean of ratios, terms dropped and sum of ratios, with some multiples only."""
    regrets = utilities = 0.0
    ratios, dropped = [], 0
    for d in range(D):
        for a in range(ads):
            if not judged.where[d, a]:
                continue
            value, gain = judged.value[d, a], {}
            for j in range(J):
                multiple = round(float(judged.bid[d, a, j] / value), 9)
                paid = judged.charge[rule][d, a, j]
                gain[j, multiple] = judged.clicks[d, a, j] * (value - paid)
            honest = gain[40, 1.0]
            tried = [u for (_, m), u in gain.items() if multiples is None or m in multiples]
            assert multiples is None or len(tried) == len(multiples)
            regret = max(0.0, max(tried) - honest)
            regrets, utilities = regrets + regret, utilities + honest
            if honest > 0:
                ratios.append(regret / honest)
            else:
                dropped += 1
    return regrets / utilities, sum(ratios) / len(ratios), dropped, sum(ratios)


@pytest.mark.parametrize("rule", ["gsp", "threshold", MYERSON])
def test_scores_against_loops(rule):
    judged = random_judged()
    impressions = revenue = clicks = images = ads = conversions = surplus = 0.0
    for place in np.ndindex(D, K):
        if judged.shown[place]:
            impressions += 1
            revenue += judged.click[place] * judged.price[rule][place]
            clicks, images = clicks + judged.click[place], images + judged.image[place]
            ads += judged.is_ad[place]
            conversions += judged.convert[place]
            if judged.is_ad[place]:
                surplus += judged.click[place] * (judged.value[place] - judged.price[rule][place])
    fine = psi_by_loop(judged, rule, K, None)
    ten = psi_by_loop(judged, rule, K, GAMMAS)
    every_ad = psi_by_loop(judged, rule, A, None)
    found = scores(judged, rule)
    assert found == pytest.approx(
        {
            "rpm": 1000 * revenue / impressions,
            "ctr_poi": clicks / impressions,
            "ctr_img": images / impressions,
            "ad_share": ads / impressions,
            "psi": fine[0],
            "psi_fine": fine[0],
            "psi_10": ten[0],
            "conversions": 1000 * conversions / impressions,
            "surplus": 1000 * surplus / impressions,
            "psi_paper": ten[3] / D,
            "psi_mean_ratio": ten[1],
            "psi_dropped": ten[2],
            "psi_all": every_ad[0],
        },
        rel=1e-9,
    )
    assert found["psi_fine"] >= found["psi_10"] > 0
    assert found["psi_all"] != found["psi_fine"]
    assert found["psi_dropped"] > 0


def test_the_ten_are_exactly_the_papers():
    assert [float(m) for m in MULTIPLES[auction.TEN]] == pytest.approx(GAMMAS, abs=1e-12)


def test_nothing_shown_scores_zero():
    nobody = {"shown": np.zeros((D, K), bool), "is_ad": np.zeros((D, K), bool)}
    empty = random_judged(
        **nobody,
        **{name: np.zeros((D, K)) for name in ("click", "image", "convert")},
        where=np.zeros((D, A), bool),
    )
    assert set(scores(empty, "gsp").values()) == {0.0}
    assert non_monotone_share(empty) == 0


def test_falling_clicks_count_for_the_slates_ads_only():
    judged = random_judged()
    order = np.argsort(judged.bid, axis=-1, kind="stable")
    clicks = np.empty_like(judged.clicks)
    np.put_along_axis(clicks, order, np.sort(judged.clicks, axis=-1), -1)
    clicks[:, K:] = 1.0 - clicks[:, K:]  # Losing ads fall, and do not count.
    assert non_monotone_share(dataclasses.replace(judged, clicks=clicks)) == 0
    d, a = np.argwhere(judged.is_ad)[0]
    highest = 80  # Twice the value.
    best = np.delete(clicks[d, a], highest).max()
    for fall, count in ((0.5, 0), (1.5, 1)):
        clicks[d, a, highest] = best - fall * MONOTONE_TOLERANCE
        found = non_monotone_share(dataclasses.replace(judged, clicks=clicks))
        assert found == pytest.approx(count / judged.is_ad.sum())


def test_myerson_prices_are_the_rules_at_every_report():
    rng = np.random.default_rng(1)
    bid, clicks = 3 * MULTIPLES[::8], rng.random(11) * (np.arange(11) > 2)
    price = myerson_prices(bid, clicks)
    for j in range(11):
        total = rules.myerson(bid[: j + 1], clicks[: j + 1])
        np.testing.assert_allclose(price[j] * clicks[j], total, rtol=1e-12, atol=1e-15)
    assert price[:3].max() == 0 < price[3:].max()
    assert (price <= bid).all()


def test_myerson_prices_follow_their_reports():
    rng = np.random.default_rng(2)
    bid, clicks = np.sort(rng.random((2, 3, 9))), rng.random((2, 3, 9))
    bid[..., 0] = 0.0
    price, order = myerson_prices(bid, clicks), rng.permutation(9)
    found = myerson_prices(bid[..., order], clicks[..., order])
    np.testing.assert_allclose(found, price[..., order], rtol=1e-12)
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(myerson_prices(bid[place], clicks[place]), price[place])


def test_myerson_prices_leave_no_regret_where_clicks_rise_and_some_where_they_fall():
    judged = random_judged()
    steps = [0.7 * (judged.bid > 0.4), 0.2 * (judged.bid > 1.1), 0.05 * judged.bid]
    for clicks, truthful in ((sum(steps), True), (steps[0] - steps[1], False)):
        charge = {MYERSON: myerson_prices(judged.bid, clicks)}
        found = scores(dataclasses.replace(judged, clicks=clicks, charge=charge), MYERSON)
        assert (max(found["psi_fine"], found["psi_all"]) < 1e-12) == truthful
    first = {"first_price": judged.bid}
    found = scores(dataclasses.replace(judged, clicks=sum(steps), charge=first), "first_price")
    assert found["psi_fine"] == np.inf  # First prices leave no utility but to liars.


def test_systems_are_named_by_their_rules_and_share_the_last_judges_floor():
    judged = {"model": random_judged(0), "truth": random_judged(1)}
    found = systems(judged, "ega", "threshold")
    every = (*RULES, MYERSON, MODEL_MYERSON)
    others = {rule for rule in every if rule != "threshold"}
    assert found.keys() == {"ega", *(f"ega-{rule}" for rule in others)}
    for rule in every:
        system = found["ega" if rule == "threshold" else f"ega-{rule}"]
        assert system.keys() == {"model", "truth", "psi_floor", "non_monotone_share"}
        assert system["model"] == scores(judged["model"], rule)
        assert system["truth"] == scores(judged["truth"], rule)
        assert system["psi_floor"] == scores(judged["truth"], MYERSON)["psi"]
        assert system["non_monotone_share"] == non_monotone_share(judged["truth"])
    alone = systems({"model": judged["model"]}, "ega", "gsp")
    assert alone["ega"].keys() == {"model", "psi_floor", "non_monotone_share"}


def random_outcomes(rows, seed):
    """Random slates of the market as a mechanism would return them, and what reports lead to."""
    dataset, _ = small_market()
    rng = np.random.default_rng(seed)
    owner = dataset.creative_poi

    def slates(*shape):
        item = rng.integers(0, MARKET.num_pois, (*shape, K)).astype(np.int32)
        item = np.where(rng.random((*shape, K)) < 0.8, item, -1)
        creative = np.vectorize(lambda poi: np.flatnonzero(owner == poi)[-1])(np.maximum(item, 0))
        is_ad = (item >= 0) & (rng.random((*shape, K)) < 0.6)
        return item, np.where(item >= 0, creative, -1).astype(np.int32), is_ad

    item, creative, is_ad = slates(rows)
    draw = lambda *shape: rng.random((rows, *shape)).astype(np.float32)
    prediction = Predictions(draw(K), draw(K), draw(K), draw(K, 2))
    nothing = np.zeros((rows, K), np.float32)
    shown = Allocation(item, item, creative, is_ad, *4 * [nothing], prediction)
    ad = np.where(np.concatenate([is_ad, draw(A - K) < 0.7], axis=1), 1, -1)
    value = np.where(ad >= 0, draw(A) + 0.1, 0.0)
    fair = Truthful(shown, {rule: draw(K) for rule in RULES}, ad, value, np.zeros((rows, A)))
    item, creative, is_ad = slates(rows, A, J)
    slot = np.where(rng.random((rows, A, J)) < 0.8, rng.integers(0, K, (rows, A, J)), -1)
    multiples = np.append(MULTIPLES, rng.uniform(0, 2, PROBES))
    tried = Reported(
        bid=multiples * value[..., None],
        clicks=np.where(slot >= 0, draw(A, J), 0.0),
        price={rule: draw(A, J) for rule in RULES},
        slot=slot,
        item=item,
        creative=creative,
        is_ad=is_ad,
    )
    return fair, tried


def test_the_truth_is_asked_for_every_report_of_every_ad():
    _, truth = small_market()
    (fair, tried), session = random_outcomes(2, 0), np.array([17, 302])
    found = auction._by_truth(RULES, fair, tried, truth, session)
    shown = fair.allocation
    rng = np.random.default_rng(0)
    for row in range(2):
        alone = [x[row][None] for x in (shown.item, shown.creative, shown.is_ad)]
        responses = truth.responses(session[row : row + 1], *alone)
        np.testing.assert_allclose(found.click[row], responses.click_poi[0], rtol=1e-6)
        np.testing.assert_allclose(found.image[row], responses.click_image[0], rtol=1e-6)
        for a, j in zip(rng.integers(0, A, 20), rng.integers(0, J, 20), strict=True):
            slate = [x[row, a, j][None] for x in (tried.item, tried.creative, tried.is_ad)]
            click = truth.responses(session[row : row + 1], *slate).click_poi[0]
            slot = tried.slot[row, a, j]
            expected = click[slot] if slot >= 0 else 0.0
            np.testing.assert_allclose(found.clicks[row, a, j], expected, rtol=1e-6)
    assert (found.clicks > 0).any()


def test_both_judges_see_the_same_prices_but_for_myersons():
    _, truth = small_market()
    fair, tried = random_outcomes(3, 1)
    model = auction._by_model(RULES, fair, tried)
    true = auction._by_truth(RULES, fair, tried, truth, np.array([0, 5, 9]))
    np.testing.assert_array_equal(model.click, np.float64(fair.allocation.prediction.click_poi))
    np.testing.assert_array_equal(model.image, np.float64(fair.allocation.prediction.click_image))
    np.testing.assert_array_equal(model.clicks, tried.clicks)
    for rule in RULES:
        for seen in (model, true):
            np.testing.assert_array_equal(seen.price[rule], fair.prices[rule])
            np.testing.assert_array_equal(seen.charge[rule], tried.price[rule])
    for seen in (model, true):
        for oracle, known in ((MYERSON, seen.clicks), (MODEL_MYERSON, model.clicks)):
            expected = myerson_prices(seen.bid, known)
            np.testing.assert_array_equal(seen.charge[oracle], expected)
            honest = np.where(fair.allocation.is_ad, expected[:, :K, 40], 0.0)
            np.testing.assert_array_equal(seen.price[oracle], honest)
    assert (model.charge[MYERSON] != true.charge[MYERSON]).any()


def test_judging_joins_batches_and_skips_blank_rows(monkeypatch):
    _, truth = small_market()
    outcomes = [random_outcomes(4, seed) for seed in (3, 4)]
    blank = [np.array([False] * 4), np.array([False, False, True, True])]
    left = iter(outcomes)
    fair_of = {}

    def no_search(mechanism, prepared, num_losing):
        fair, tried = next(left)
        fair_of["tried"] = tried
        return fair

    monkeypatch.setattr(auction, "prepare_batch", lambda *_: None)
    monkeypatch.setattr(auction, "truthful", no_search)
    monkeypatch.setattr(auction, "explore", lambda *_: fair_of["tried"])
    batches = []
    for number, missing in enumerate(blank):
        fields = {name: np.zeros((4, 2)) for name in Request.__dataclass_fields__}
        fields["item"] = np.where(missing[:, None], -1, fields["item"])
        batches.append(fields | {"session": np.arange(4) + 4 * number})
    done = []
    judged = judge(MECHANISM, None, batches, truth, 1, done.append)
    assert done == [4, 6]
    whole = [auction._by_truth(RULES, *outcomes[n], truth, batches[n]["session"]) for n in range(2)]
    expected = jax.tree.map(
        lambda x, y: np.concatenate([x, y[:2]]), *(dataclasses.asdict(each) for each in whole)
    )
    found = dataclasses.asdict(judged["truth"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
    assert judged["model"].click.shape == (6, K)
    left = iter(outcomes)
    assert judge(MECHANISM, None, batches, None, 1).keys() == {"model"}
