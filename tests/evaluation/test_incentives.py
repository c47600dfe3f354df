"""Psi against a loop and closed forms; jumps and falls of clicks by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.evaluation.incentives import jump_brackets, non_monotone, psi


def by_loop(truthful, misreport, mask):
    regrets, utilities, ratios, dropped = 0.0, 0.0, [], 0
    for place in np.ndindex(*mask.shape):
        if mask[place]:
            regret = max([0.0, *(u - truthful[place] for u in misreport[place])])
            regrets, utilities = regrets + regret, utilities + truthful[place]
            if truthful[place] > 0:
                ratios.append(regret / truthful[place])
            else:
                dropped += 1
    return {
        "psi": regrets / utilities,
        "psi_paper": sum(ratios) / len(mask),
        "psi_mean_ratio": sum(ratios) / len(ratios),
        "dropped": dropped,
    }


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_psi_against_a_loop(share):
    rng = np.random.default_rng(0)
    truthful = np.maximum(rng.normal(0.5, 0.6, (7, 5)), 0.0)
    misreport, mask = rng.normal(0.5, 0.6, (7, 5, 4)), rng.random((7, 5)) < share
    found, expected = psi(truthful, misreport, mask), by_loop(truthful, misreport, mask)
    assert 0 < expected["dropped"] < mask.sum()
    assert found == pytest.approx(expected, rel=1e-12)


def test_psi_ignores_what_is_masked():
    truthful, misreport = np.array([[1.0, np.nan]]), np.array([[[1.5, 0.5], [np.inf, np.nan]]])
    assert psi(truthful, misreport, [[True, False]]) == {
        "psi": 0.5,
        "psi_paper": 0.5,
        "psi_mean_ratio": 0.5,
        "dropped": 0,
    }


def test_the_papers_formula_is_neither_the_ratio_of_sums_nor_the_mean_of_ratios():
    found = psi([[1.0, 3.0]], [[[2.0], [3.0]]], [[True, True]])
    assert found == {"psi": 0.25, "psi_paper": 1.0, "psi_mean_ratio": 0.5, "dropped": 0}


def test_psi_without_terms_misreports_or_regret_is_zero():
    nothing = {"psi": 0.0, "psi_paper": 0.0, "psi_mean_ratio": 0.0, "dropped": 0}
    assert psi(np.ones((2, 2)), np.ones((2, 2, 3)), np.zeros((2, 2), bool)) == nothing
    assert psi(np.ones((2, 2)), np.zeros((2, 2, 0)), np.ones((2, 2), bool)) == nothing
    assert psi(np.ones((2, 2)), np.zeros((2, 2, 3)), np.ones((2, 2), bool)) == nothing


def test_regret_without_utility_is_not_hidden():
    found = psi([[0.0]], [[[0.2]]], [[True]])
    assert found == {"psi": np.inf, "psi_paper": 0.0, "psi_mean_ratio": 0.0, "dropped": 1}


def test_psi_sums_money_in_double():
    truthful = jnp.full((1000, 100), 0.1, jnp.float32)
    found = psi(truthful, truthful[..., None] * 2, np.ones((1000, 100), bool))
    assert found["psi"] == 1.0


def test_misaligned_tables_are_refused():
    with pytest.raises(AssertionError):
        psi(np.ones((2, 3)), np.ones((3, 2, 4)), np.ones((2, 3), bool))


def test_brackets_hold_the_largest_jumps():
    grid, clicks = [0.0, 1.0, 2.0, 4.0, 8.0], [0.0, 0.1, 0.1, 0.4, 0.3]
    low, high, where = jump_brackets(grid, clicks, 3)
    np.testing.assert_array_equal(low[:1], [2.0])
    np.testing.assert_array_equal(high[:1], [4.0])
    assert {*zip(low[1:], high[1:], strict=True)} == {(0.0, 1.0), (4.0, 8.0)}
    assert where.all()


def test_brackets_of_equal_jumps_rise_and_no_jump_is_masked():
    low, high, where = jump_brackets(np.arange(4.0), [0.0, 0.5, 0.5, 1.0], 3)
    np.testing.assert_array_equal(low, [0, 2, 1])
    np.testing.assert_array_equal(high, [1, 3, 2])
    np.testing.assert_array_equal(where, [True, True, False])


def test_brackets_of_rows_are_those_of_each():
    rng = np.random.default_rng(0)
    grid, clicks = np.sort(rng.random((3, 2, 6))), rng.random((3, 2, 6))
    rows = jump_brackets(grid, clicks, 2)
    for place in np.ndindex(3, 2):
        alone = jump_brackets(grid[place], clicks[place], 2)
        for one, many in zip(alone, rows, strict=True):
            np.testing.assert_array_equal(one, many[place])


def test_more_jumps_than_intervals_are_refused():
    with pytest.raises(ValueError, match="4 jumps need at least 4 intervals, got 3"):
        jump_brackets(np.arange(4), np.zeros(4), 4)


def test_falls_of_clicks():
    clicks = np.array(
        [
            [0.0, 0.2, 0.2, 0.5],  # Rises.
            [0.0, 0.5, 0.4, 0.6],  # Falls by 0.1 and recovers.
            [0.5, 0.47, 0.44, 0.41],  # Small falls add up.
            [0.9, 0.0, 0.9, 0.0],  # Does not count.
        ]
    )
    where = np.array([True, True, True, False])
    np.testing.assert_array_equal(non_monotone(clicks, where, 0.0), [False, True, True, False])
    np.testing.assert_array_equal(non_monotone(clicks, where, 0.05), [False, True, True, False])
    np.testing.assert_array_equal(non_monotone(clicks, where, 0.095), [False, True, False, False])
    np.testing.assert_array_equal(
        non_monotone(clicks.reshape(2, 2, 4), where.reshape(2, 2), 0.2), np.zeros((2, 2), bool)
    )


def test_a_utility_that_is_no_number_is_refused_where_it_counts():
    nan = [[[1.0, np.nan]]]
    with pytest.raises(ValueError, match="NaN or infinite"):
        psi([[1.0]], nan, [[True]])
    assert psi([[1.0]], nan, [[False]])["psi"] == 0
