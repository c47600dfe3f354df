"""Paired lifts: by hand, on equal clicks, and the coverage of their intervals where it is known."""

import dataclasses

import numpy as np
import pytest

from ega_jax.evaluation.lifts import (
    bootstrap_interval,
    lift,
    measured,
    student_interval,
    value_at_clicks,
    value_lift_at_clicks,
)
from ega_jax.evaluation.serving import Outcomes


def outcomes(value, clicks=None):
    value = np.asarray(value, float)
    ones = np.ones_like(value)
    fields = {field.name: ones for field in dataclasses.fields(Outcomes)}
    return Outcomes(**fields | {"value": value, "clicks": ones if clicks is None else clicks})


def test_a_lift_is_of_the_totals_in_per_cent():
    own, other = outcomes([3.0, 0.0, 6.0]), outcomes([2.0, 1.0, 3.0])
    assert measured(lift("value"), [own, other]) == pytest.approx(50.0)
    assert np.isnan(measured(lift("value"), [own, outcomes([0.0, 0.0, 0.0])]))


@pytest.mark.parametrize(
    ("target", "value"),
    [(0.05, 9.0), (0.04, 10.0), (0.01, 10.0), (0.045, 9.5), (0.06, 8.0)],
)
def test_value_is_linear_between_efficient_points(target, value):
    """The points of CTR .05 and .03 have both less value and fewer clicks than others."""
    frontier = np.array([10.0, 8.0, 6.0, 9.9]), np.array([0.04, 0.06, 0.05, 0.03])
    assert value_at_clicks(*frontier, target) == pytest.approx(value)


def test_clicks_that_no_point_reaches_have_no_value():
    assert np.isnan(value_at_clicks(np.array([10.0, 8.0]), np.array([0.04, 0.06]), 0.0601))


def test_a_lift_at_equal_clicks_is_that_of_the_frontier():
    other = outcomes([10.0, 10.0], np.array([0.3, 0.7]))
    points = [
        outcomes([14.0, 14.0], np.array([0.4, 0.4])),
        outcomes([10.0, 10.0], np.array([0.5, 0.7])),
    ]
    assert measured(value_lift_at_clicks, [other, *points]) == pytest.approx(20.0)


def test_an_interval_of_one_market_pairs_the_sessions():
    rng = np.random.default_rng(0)
    value = rng.lognormal(0.0, 2.0, 500)  # Differs much between sessions, little between systems.
    own = value * rng.uniform(1.05, 1.15, 500)
    low, high = bootstrap_interval(lift("value"), [outcomes(own), outcomes(value)])
    assert low < measured(lift("value"), [outcomes(own), outcomes(value)]) < high
    unpaired = outcomes(rng.permutation(value))
    widest = np.diff(bootstrap_interval(lift("value"), [outcomes(own), unpaired])).item()
    assert high - low < widest / 5


def test_resamples_that_no_frontier_reaches_count_as_lowest():
    """Half of the sessions click; the frontier's only point is above the other system by luck."""
    rng = np.random.default_rng(3)
    other = outcomes(np.full(200, 1.0), rng.permutation(np.repeat([0.0, 1.0], 100)))
    point = outcomes(np.full(200, 1.2), rng.permutation(np.repeat([0.0, 1.0], 100)))
    low, high = bootstrap_interval(value_lift_at_clicks, [other, point])
    assert low == -np.inf
    assert high == pytest.approx(20.0)


def test_an_end_is_a_resample_or_minus_infinity():
    """However many resamples are undefined, an end is no mean of some that are and some not."""
    value = outcomes(np.random.default_rng(0).lognormal(size=100))

    def above(least):
        return lambda totals: np.where(totals[0].value < least, np.nan, totals[0].value)

    lows = [bootstrap_interval(above(least), [value])[0] for least in np.linspace(100, 200, 81)]
    assert -np.inf in lows
    assert np.isfinite(lows[0])
    assert all(low == -np.inf or low >= 100 for low in lows)


def test_bootstrap_intervals_cover_a_known_lift():
    rng, held = np.random.default_rng(1), 0
    for number in range(200):
        value = rng.lognormal(0.0, 0.5, 300)
        own = value * 1.1 * rng.uniform(0.5, 1.5, 300)
        low, high = bootstrap_interval(lift("value"), [outcomes(own), outcomes(value)], number)
        held += low <= 10.0 <= high
    assert 0.9 <= held / 200 <= 0.99


def test_intervals_over_five_markets_cover_a_known_lift():
    """Markets differ in level and in effect; each is measured on sessions of its own."""
    rng, held, effect, trials = np.random.default_rng(2), 0, 6.0, 2000
    for _ in range(trials):
        lifts = []
        for level, own_effect in zip(
            rng.lognormal(0, 0.5, 5), rng.normal(effect, 2, 5), strict=True
        ):
            other = level * rng.lognormal(0.0, 1.0, 400)
            own = other * (1 + own_effect / 100) * rng.uniform(0.8, 1.2, 400)
            lifts.append(measured(lift("value"), [outcomes(own), outcomes(other)]))
        low, high = student_interval(lifts)
        held += low <= effect <= high
    assert 0.93 <= held / trials <= 0.97


def test_one_market_has_no_students_interval():
    assert np.isnan(student_interval([3.0])).all()
