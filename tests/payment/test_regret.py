"""Re-runs against a plain auction in numpy, regret by hand, and what masks mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.payment import regret
from ega_jax.payment.network import Context
from ega_jax.payment.regret import Outcome

QUALITY = np.array([0.3, 0.5, 0.2, 0.4], np.float32)
CLICKS = np.array([1.0, 0.6], np.float32)  # Of two slots.
BIDS = np.array([2.0, 1.0, 4.0, 1.6], np.float32)
N = len(BIDS)


def outcome_of(bids, ad):
    """Two slots by bid times quality; the context tells who it is of."""
    scores = bids * QUALITY
    place = jnp.sum(scores > scores[ad])
    others = -jnp.sort(-bids.at[ad].set(0.0))[: N - 1]
    clicks = jnp.asarray(QUALITY)[ad] * jnp.append(CLICKS, jnp.zeros(N - 2))[place]
    seen = jnp.stack([ad, place]).astype(jnp.float32)
    context = Context(seen, others, jnp.zeros(0), clicks, jnp.ones(()))
    return Outcome(bids[ad], clicks, context)


def outcomes_of(bids):
    """Runs the auction for reports of single ads, each in place of the ad's bid."""

    def one(ad, report):
        return outcome_of(bids.at[ad].set(report), ad)

    return lambda ads, reports: jax.vmap(one)(jnp.maximum(ads, 0), reports)


@jax.jit
def rerun(bids, ads, reports):
    return regret.rerun(outcomes_of(bids), ads, reports)


@jax.jit
def tabulate(bids, ads, reports):
    return regret.tabulate(outcomes_of(bids), ads, bids[ads], reports)


def clicks_by_hand(bids, ad):
    scores = sorted(((b * q, i) for i, (b, q) in enumerate(zip(bids, QUALITY, strict=True))))[::-1]
    place = [i for _, i in scores].index(ad)
    return QUALITY[ad] * CLICKS[place] if place < 2 else 0.0


def test_every_report_runs_the_whole_allocation():
    ads = np.array([2, 3, -1], np.int32)
    reports = np.array([[4.0, 1.0, 0.0], [9.0, 1.6, 1.7], [5.0, 5.0, 5.0]], np.float32)
    found = rerun(jnp.asarray(BIDS), ads, reports)
    for (a, j), report in np.ndenumerate(reports):
        bids = BIDS.copy()
        bids[ads[a]] = report
        expected = clicks_by_hand(bids, ads[a]) if ads[a] >= 0 else 0.0
        np.testing.assert_allclose(found.clicks[a, j], expected, rtol=1e-6, err_msg=f"{a}, {j}")
        if ads[a] >= 0:
            np.testing.assert_allclose(found.bid[a, j], report)
            others = sorted(np.delete(BIDS, ads[a]))[::-1]
            np.testing.assert_allclose(found.context.others[a, j], others)
    assert len(set(np.asarray(found.clicks[1]).tolist())) == 2, "a report changes the outcome"


def test_a_table_holds_the_truth_and_the_misreports():
    ads = jnp.array([0, 1, -1])
    reports = jnp.array([[0.1, 3.0], [0.2, 2.0], [1.0, 1.0]])
    table = tabulate(jnp.asarray(BIDS), ads, reports)
    np.testing.assert_array_equal(table.where, [True, True, False])
    np.testing.assert_allclose(table.truth.bid[:2], BIDS[:2])
    expected = [clicks_by_hand(BIDS, 0), clicks_by_hand(BIDS, 1), 0.0]
    np.testing.assert_allclose(table.truth.clicks, expected, rtol=1e-6)
    again = rerun(jnp.asarray(BIDS), ads, reports)
    jax.tree.map(np.testing.assert_array_equal, table.misreports, again)


def test_a_batch_is_a_flat_table():
    each = lambda bids: tabulate(bids, jnp.arange(3), jnp.ones((3, 2)))
    tables = jax.vmap(each)(jnp.stack([BIDS, BIDS[::-1]]))
    batch = regret.batch_of(tables)
    assert all(array.shape[0] == 2 for array in batch.values())
    again = regret.table_of(batch | {"session": np.arange(2)})
    assert jax.tree.structure(again) == jax.tree.structure(tables)
    jax.tree.map(np.testing.assert_array_equal, again, tables)


def test_regret_is_the_best_gain_by_lying():
    random = np.random.default_rng(0)
    truthful, lying = 1 + random.normal(size=(5, 3)), random.normal(size=(5, 3, 4))
    found = np.asarray(regret.regret(jnp.asarray(truthful), jnp.asarray(lying)))
    for place, utility in np.ndenumerate(truthful):
        best = max(0.0, *(u - utility for u in lying[place]))
        np.testing.assert_allclose(found[place], best, rtol=1e-5, atol=1e-7)
    assert (found == 0).any() & (found > 0).any()


def test_with_the_slate_held_fixed_regret_would_be_something_else():
    """At half the bid each: the literal (6) says report 0; in truth that loses the slot."""
    bids, ads = jnp.asarray(BIDS), jnp.arange(N)
    reports = jnp.linspace(0.0, 2.0, 38)[None] * BIDS[:, None]
    table = tabulate(bids, ads, reports)
    value, truth, lies = table.truth.bid, table.truth, table.misreports
    truthful = regret.utility(value, truth.clicks, value / 2)
    again = regret.regret(truthful, regret.utility(value[:, None], lies.clicks, lies.bid / 2))
    held = lies.replace(clicks=jnp.broadcast_to(truth.clicks[:, None], lies.clicks.shape))
    fixed = regret.regret(truthful, regret.utility(value[:, None], held.clicks, lies.bid / 2))
    np.testing.assert_allclose(fixed, value / 2 * truth.clicks, rtol=1e-5)
    shown = np.asarray(truth.clicks) > 0
    assert (np.asarray(again)[shown] < 0.9 * np.asarray(fixed)[shown]).all()
    for ad in range(N):  # The best report by search, the allocation run in numpy.
        gains = []
        for report in np.asarray(reports[ad]):
            lied = BIDS.copy()
            lied[ad] = report
            gains.append(clicks_by_hand(lied, ad) * (BIDS[ad] - report / 2))
        best = max(0.0, max(gains) - clicks_by_hand(BIDS, ad) * BIDS[ad] / 2)
        np.testing.assert_allclose(again[ad], best, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["clicks", "exposure"])
def test_soft_counts_exposure_where_the_ad_is_shown(name):
    context = Context(
        jnp.zeros((2, 0)), jnp.ones((2, 1)), jnp.zeros((2, 0)), jnp.array([0.3, 0.7]), jnp.ones(2)
    )
    outcome = Outcome(jnp.ones(2), jnp.array([0.5, 0.0]), context)
    counted = regret.soft(outcome) if name == "exposure" else outcome
    expected = [0.3, 0.0] if name == "exposure" else [0.5, 0.0]
    np.testing.assert_allclose(
        regret.utility(jnp.full(2, 3.0), counted.clicks, jnp.full(2, 2.0)), expected
    )
