"""Worked auctions from papers and textbooks: every field of every case, on the host and traced.

The file of cases is no part of the package: where it is absent, these tests are skipped.
"""

import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from rule_kinds import HOST, KINDS

from ega_jax.evaluation.incentives import jump_brackets, psi
from ega_jax.payment.rules import slate_clarke

PATH = Path(__file__).parents[2].parent / "shared" / "golden" / "auctions.json"
pytestmark = pytest.mark.skipif(not PATH.exists(), reason="no worked auctions here")
CASES = {c["id"]: c for c in json.loads(PATH.read_text())["cases"]} if PATH.exists() else {}


@pytest.fixture(params=KINDS)
def rule(request):
    return KINDS[request.param]


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=1e-6, atol=1e-9)


def by_ad(order, amount):
    """What each ad pays, by its position as text, as the cases have it."""
    return {str(i): float(x) for i, x in zip(order, amount, strict=True) if i >= 0}


def close_by_ad(found, expected):
    assert found.keys() == expected.keys()
    close([found[i] for i in expected], list(expected.values()))


def ranked(rule, bids, slots):
    """`(ad, price per click)` by GSP and total payments by VCG, all of quality 1."""
    order, price = rule.gsp(bids, np.ones(len(bids)), len(slots))
    vcg_order, total = rule.vcg(bids, np.ones(len(bids)), slots)
    np.testing.assert_array_equal(order, vcg_order)
    return np.asarray(order), np.asarray(price), np.asarray(total)


def test_every_case_is_known():
    assert CASES.keys() == {
        "EOS-2007-base",
        "EOS-2007-nonIC",
        "CS186-VCG-r0",
        "CS186-VCG-r14",
        "VCG-fractional-1",
        "AuctionNet-GSP",
        "PERM-EXT-exact",
        "MYERSON-n-uniform",
        "FIXED-LIST-TRAP",
    }


def test_eos_base(rule):
    case = CASES["EOS-2007-base"]
    order, price, total = ranked(rule, case["bids"], case["slots"])
    close_by_ad(by_ad(order, price), case["gsp_per_click"])
    close_by_ad(by_ad(order, price * case["slots"]), case["gsp_total"])
    close_by_ad(by_ad(order, total), case["vcg_total"])
    close(np.dot(price, case["slots"]), case["gsp_revenue"])
    close(total.sum(), case["vcg_revenue"])


def test_eos_gsp_is_not_truthful(rule):
    case = CASES["EOS-2007-nonIC"]
    values, slots = case["values"], case["slots"]

    def utility_0(bid):
        order, price, _ = ranked(rule, [bid, *values[1:]], slots)
        place = list(order).index(0)
        return (values[0] - price[place]) * slots[place]

    close(utility_0(values[0]), case["gsp_truthful_utility_0"])
    close(utility_0(3), case["gsp_utility_0_if_bid_3"])
    found = psi([[utility_0(values[0])]], [[[utility_0(b) for b in (2.5, 3, 20)]]], [[True]])
    regret = found["psi"] * case["gsp_truthful_utility_0"]
    assert regret >= case["regret_0_at_least"] * (1 - 1e-6)
    order, _, total = ranked(rule, values, slots)
    close_by_ad(by_ad(order, total), case["vcg_total"])


@pytest.mark.parametrize("name", ["CS186-VCG-r0", "CS186-VCG-r14"])
def test_cs186(rule, name):
    case = CASES[name]
    quality = np.ones(len(case["bids"]))
    order, total = rule.vcg(case["bids"], quality, case["slots"], case["reserve"])
    winners, paid = case["alloc_bidder_index"], case["vcg_total_by_slot"]
    empty = len(case["slots"]) - len(winners)
    np.testing.assert_array_equal(order, winners + [-1] * empty)
    close(total, paid + [0.0] * empty)


def test_fractional_slots(rule):
    case = CASES["VCG-fractional-1"]
    order, _, total = ranked(rule, case["bids"], case["slots"])
    close_by_ad(by_ad(order, total), case["vcg_total"])
    close_by_ad(by_ad(order, total / case["slots"]), case["vcg_per_click"])
    value = np.array(case["bids"])[order] * case["slots"]
    close_by_ad(by_ad(order, value - total), case["utilities"])


def test_auctionnet(rule):
    case = CASES["AuctionNet-GSP"]
    assert len(case["slot_exposure"]) == case["num_slots"]
    order, price, total = ranked(rule, case["bids"], case["slot_exposure"])
    np.testing.assert_array_equal(order, [0, 1, 2])
    close(price, case["gsp_price_per_exposure"])
    close(price.min(), case["least_winning_cost"])
    close_by_ad(by_ad(order, total), case["vcg_total"])


def permutation_menu(case):
    """All ordered lists of at most two ads, with the exact click rates of every ad in each."""
    base, slot = ([Fraction(x) for x in case[key]] for key in ("base_ctr", "slot_factor"))
    ads = range(len(base))
    lists = [list(p) for k in range(len(slot) + 1) for p in itertools.permutations(ads, k)]
    clicks = []
    for chosen in lists:
        rates = [Fraction(0)] * len(base)
        for place, i in enumerate(chosen):
            above = [Fraction(case["mult_above_to_below"][j][i]) for j in chosen[:place]]
            rates[i] = base[i] * slot[place] * np.prod(above, initial=Fraction(1))
        clicks.append(rates)
    return lists, np.array(clicks, float)


def fractions(case, key):
    return np.array([float(Fraction(x)) for x in case[key]])


def test_permutation_externality(rule):
    case = CASES["PERM-EXT-exact"]
    bids = np.array(case["bids"], float)
    lists, clicks = permutation_menu(case)
    chosen, total = rule.clarke(bids, clicks)
    x = clicks[int(chosen)]
    assert lists[int(chosen)] == case["argmax_list"]
    close(x, fractions(case, "x"))
    close(bids @ x, float(Fraction(case["welfare"])))
    close(total, fractions(case, "clarke_total"))
    marginal = bids * x - np.asarray(total)
    close(marginal[:2], fractions(case, "marginal_contribution_eq31"))
    close(slate_clarke(bids, x, total), fractions(case, "clarke_per_click"))


def test_clarke_is_the_myerson_integral():
    """With the jumps of clicks found to rounding, by bisection of the brackets."""
    case = CASES["PERM-EXT-exact"]
    bids = np.array(case["bids"], float)
    _, clicks = permutation_menu(case)

    def clicks_of(i, bid):
        chosen, _ = HOST.clarke(np.where(np.arange(3) == i, bid, bids), clicks)
        return clicks[chosen, i]

    for i, expected in enumerate(fractions(case, "clarke_total")):
        grid = np.linspace(0, bids[i], 40)
        low, high, where = jump_brackets(grid, [clicks_of(i, b) for b in grid], 4)
        for _ in range(40):
            middle = (low + high) / 2
            same = [clicks_of(i, a) == clicks_of(i, b) for a, b in zip(low, middle, strict=True)]
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        fine = np.sort(np.concatenate([grid, low[where], high[where]]))
        close(HOST.myerson(fine, [clicks_of(i, b) for b in fine]), expected)


def expected_revenue(rule, n, points=2001):
    """Of the optimal auction of one item: n bidders uniform on [0, 1], reserve 1/2.

    A bidder wins where it bids the reserve and most, with probability `b ** (n - 1)`; the total
    paid is integrated over the bid by Simpson's rule, smooth above the reserve.
    """
    bids = np.linspace(0.5, 1.0, 41)
    payments = []
    for bid in bids:
        grid = np.concatenate([[0.0, 0.5], np.linspace(0.5, bid, points)])
        won = np.where(np.arange(points + 2) < 2, 0.0, grid ** (n - 1))
        payments.append(float(rule.myerson(grid, won)))
    weights = np.where(np.arange(41) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    return n * np.dot(weights, payments) * (bids[1] - bids[0]) / 3


def test_optimal_revenue_of_uniform_bidders(rule):
    case = CASES["MYERSON-n-uniform"]
    assert case["formula"] == "Rev(n)=(n-1+2^-n)/(n+1), reserve 1/2"
    revenue = {n: expected_revenue(rule, n) for n in (1, 2, 3, 5)}
    for n, given in case["n"].items():
        close(revenue[int(n)], (int(n) - 1 + 2.0 ** -int(n)) / (int(n) + 1))
        assert revenue[int(n)] == pytest.approx(given, abs=1e-7)
    for shape, given in case["itemwise"].items():
        n, items = (int(x) for x in shape.split("x"))
        assert items * revenue[n] == pytest.approx(given, abs=1e-6)


def test_a_frozen_list_rewards_the_smallest_report():
    """The literal (6): the slate stays, the price is a rate of what is reported."""
    case = CASES["FIXED-LIST-TRAP"]
    assert case["claim"].endswith("Psi = 0.8*p_hat/(1-p_hat)")
    rng = np.random.default_rng(0)
    value, pctr = rng.lognormal(0, 1, (2, 20, 4))
    reports = value[..., None] * np.arange(1, 11) / 5
    for rate, given in case["p_hat_to_psi"].items():
        truthful = (value - float(rate) * value) * pctr
        misreport = (value[..., None] - float(rate) * reports) * pctr[..., None]
        found = psi(truthful, misreport, np.ones_like(value, bool))
        formula = 0.8 * float(rate) / (1 - float(rate))
        assert found["psi"] == pytest.approx(formula, rel=1e-9)
        assert found["psi_mean_ratio"] == pytest.approx(formula, rel=1e-9)
        assert found["psi"] == pytest.approx(given, abs=5e-5)
        assert found["dropped"] == 0
