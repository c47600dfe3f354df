"""Every report against an allocation run by hand; regret counted as reported; the truthful mode."""

import functools

import jax
import numpy as np
import pytest
from tiny_mechanism import requests_with_ads_last, tiny_mechanism
from tiny_models import K, alone, levers, one, serve

from ega_jax.auction.pricing import RULES
from ega_jax.evaluation.auction import judge, scores
from ega_jax.evaluation.misreports import (
    MULTIPLES,
    NUM_BISECTIONS,
    NUM_JUMPS,
    explore,
    prepare_batch,
    truthful,
)

B, NUM_LOSING = 6, 2
REQUESTS = requests_with_ads_last(3, B)
HONEST = 40  # Place of the true value among the reports.


@functools.cache
def explored(bid_free=False):
    settings = levers(bid_free=bid_free)
    prepared = prepare_batch(tiny_mechanism().system, REQUESTS, settings)
    fair = truthful(tiny_mechanism(), prepared, NUM_LOSING)
    return fair, explore(tiny_mechanism(), prepared, fair)


@pytest.mark.parametrize("bid_free", [False, True])
def test_a_report_leads_to_what_an_allocation_under_that_bid_does(bid_free):
    """Against one allocation of its own per report; ads at the end of a request included."""
    fair, tried = explored(bid_free)
    rng = np.random.default_rng(0)
    places = rng.permutation([(r, a) for r, a in np.argwhere(fair.ad >= 0)])[:12]
    reports = rng.integers(0, tried.bid.shape[2], (12, B))
    shown = 0
    for (row, a), picked in zip(places, reports, strict=True):
        ad = fair.ad[row, a]
        bids = np.repeat(REQUESTS.bid[row][None], B, axis=0)
        bids[:, ad] = tried.bid[row, a, picked]
        many = jax.tree.map(lambda x, row=row: np.repeat(x[row][None], B, axis=0), REQUESTS)
        settings = levers(bid_free=bid_free)
        prepared = prepare_batch(tiny_mechanism().system, many.replace(bid=bids), settings)
        by_hand = truthful(tiny_mechanism(), prepared, NUM_LOSING)
        for number, j in enumerate(picked):
            slate = one(by_hand.allocation, number)
            for field in ("item", "creative", "is_ad"):
                np.testing.assert_array_equal(
                    getattr(tried, field)[row, a, j], getattr(slate, field)
                )
            slot = np.flatnonzero(np.asarray(slate.candidate) == ad)
            assert tried.slot[row, a, j] == (slot[0] if slot.size else -1)
            if not slot.size:
                assert tried.clicks[row, a, j] == 0
                continue
            shown += 1
            pctr = slate.prediction.click_poi[slot[0]]
            np.testing.assert_allclose(tried.clicks[row, a, j], pctr, rtol=1e-5)
            assert tried.price.keys() == by_hand.prices.keys() == RULES.keys()
            for rule, prices in by_hand.prices.items():
                found, price = tried.price[rule][row, a, j], prices[number, slot[0]]
                np.testing.assert_allclose(found, price, rtol=1e-4, atol=2e-5, err_msg=rule)
    assert 0 < shown < reports.size


def test_what_is_followed_are_the_slates_ads_and_the_best_losers_of_the_menu():
    fair, tried = explored()
    prepared, _, menus = serve(tiny_mechanism().system, REQUESTS, levers())
    quality = alone(tiny_mechanism().system, prepared, REQUESTS)[1]
    for row in range(B):
        request, shown = one(REQUESTS, row), np.asarray(fair.allocation.candidate[row])
        for slot in range(K):
            expected = shown[slot] if fair.allocation.is_ad[row, slot] else -1
            assert fair.ad[row, slot] == expected
        found = np.asarray(menus.candidate[row])[np.asarray(menus.where[row])]
        losing = [n for n in np.flatnonzero(request.is_ad) if n in found and n not in shown]
        followed = [n for n in np.asarray(fair.ad[row, K:]) if n >= 0]
        assert len(followed) == len(set(followed)) == min(len(losing), NUM_LOSING)
        score = request.bid * quality[row]
        best = sorted(losing, key=lambda n: -score[n])[:NUM_LOSING]
        np.testing.assert_allclose(score[np.array(followed, int)], score[np.array(best, int)])
        assert set(followed) <= set(losing)
        for a, ad in enumerate(np.asarray(fair.ad[row])):
            assert fair.value[row, a] == (request.bid[ad] if ad >= 0 else 0)
            if ad < 0:
                assert (tried.clicks[row, a] == 0).all()
    assert (fair.ad[:, K:] >= 0).any()
    assert (fair.ad[:, :K] < 0).any()


def test_truth_is_one_of_the_reports():
    fair, tried = explored()
    grid = MULTIPLES * np.asarray(fair.value)[..., None]
    np.testing.assert_allclose(tried.bid[..., : MULTIPLES.size], grid, rtol=1e-6)
    prediction = np.asarray(fair.allocation.prediction.click_poi)
    for row, slot in np.argwhere(fair.allocation.is_ad):
        np.testing.assert_allclose(
            tried.clicks[row, slot, HONEST], prediction[row, slot], rtol=1e-5
        )
        for rule in RULES:
            charged = tried.price[rule][row, slot, HONEST]
            np.testing.assert_allclose(
                charged, fair.prices[rule][row, slot], rtol=1e-4, atol=2e-5, err_msg=rule
            )


def test_probes_halve_the_intervals_with_the_largest_jumps():
    _, tried = explored()
    size = MULTIPLES.size
    jumps = 0
    for place in np.ndindex(tried.bid.shape[:2]):
        bid, clicks = np.float64(tried.bid[place]), tried.clicks[place]
        change = [abs(float(clicks[i + 1]) - float(clicks[i])) for i in range(size - 1)]
        largest = sorted(range(size - 1), key=lambda i: -change[i])[:NUM_JUMPS]
        for number, i in enumerate(largest):
            low, high = bid[i], bid[i + 1]
            for step in range(NUM_BISECTIONS):
                probe = size + step * NUM_JUMPS + number
                np.testing.assert_allclose(bid[probe], (low + high) / 2, rtol=1e-6)
                as_below = abs(clicks[probe] - clicks[i]) <= abs(clicks[probe] - clicks[i + 1])
                low, high = (bid[probe], high) if as_below else (low, bid[probe])
            jumps += change[i] > 0.01
            assert bid[i] <= low <= high <= bid[i + 1]
    assert jumps > 0
    assert tried.bid.shape[2] == size + NUM_JUMPS * NUM_BISECTIONS


def judged(**changes):
    """As the model sees it, under changed levers."""
    names = ("history_poi", "history_creative", "item", "is_ad", "bid")
    batch = {name: getattr(REQUESTS, name) for name in names} | {"session": np.arange(B)}
    return judge(tiny_mechanism(), levers(**changes), [batch], None, NUM_LOSING)["model"]


def regret_over_utility(utility_of):
    """Sums over the slates' ads, of `utility_of(row, slot, report)`."""
    fair, tried = explored()
    regret = utility = 0.0
    for row, slot in np.argwhere(fair.allocation.is_ad):
        honest = utility_of(row, slot, HONEST)
        best = max(utility_of(row, slot, j) for j in range(tried.bid.shape[2]))
        regret, utility = regret + max(best - honest, 0.0), utility + honest
    return regret / utility


@pytest.mark.parametrize("rule", ["rate", "gsp"])
def test_only_regret_of_allocations_run_again_is_reported(rule):
    """With the slate held fixed (6), a lie changes nothing but the bid that a rate is charged of.

    The rate stays what it was, so the best lie is then to bid nothing; with the allocation run
    again that loses the slot.
    """
    fair, tried = explored()
    value = np.float64(fair.value)
    rate = np.float64(fair.prices[rule]) / np.where(fair.allocation.is_ad, value[:, :K], 1.0)

    def fixed(row, slot, report):
        price = rate[row, slot] * tried.bid[row, slot, report]
        return tried.clicks[row, slot, HONEST] * (value[row, slot] - price)

    def rerun(row, slot, report):
        price = np.float64(tried.price[rule][row, slot, report])
        return tried.clicks[row, slot, report] * (value[row, slot] - price)

    found = scores(judged(), rule)["psi"]
    assert found == pytest.approx(regret_over_utility(rerun), rel=1e-4, abs=1e-7)
    literal = regret_over_utility(fixed)
    assert literal > 0.01
    assert abs(found - literal) > 0.05 * literal


def test_no_lie_pays_in_the_truthful_mode():
    """Losing ads included; the same prices on a menu that bids shape leave regret."""
    exact = [scores(judged(bid_free=True, reserve=r), "clarke") for r in (0.0, 0.8)]
    for found in exact:
        assert found["psi_all"] < 1e-5
        assert found["psi_fine"] < 1e-5
    assert 0 < exact[0]["rpm"] < exact[1]["rpm"]
    assert scores(judged(bid_free=True), "first_price")["psi_all"] > 0.01
    assert scores(judged(), "clarke")["psi_all"] > 1e-4


def test_of_few_candidates_no_more_are_followed_than_there_are():
    """A menu has at most as many ads as its slates have slots."""
    system = tiny_mechanism().system
    prepared = prepare_batch(system, REQUESTS, levers())
    most = system.config.num_beams * K
    follow = lambda: truthful(tiny_mechanism(), prepared, most + 5)
    assert jax.eval_shape(follow).ad.shape == (B, K + most)
