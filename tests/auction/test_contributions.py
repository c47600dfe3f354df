"""Marginal contributions (31) by a loop, and against a search without each item."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import LEVERS, K, one, random_requests, tiny_ega, with_beams

from ega_jax.auction.contributions import contributions, marginal_contributions
from ega_jax.generation.reports import absent

REQUESTS = random_requests(5, 12)


def contributions_by_loop(values, items, where, chosen):
    contributions, found = [], []
    for item in items[chosen]:
        others = [v for v, s, w in zip(values, items, where, strict=True) if w and item not in s]
        known = item >= 0 and bool(others)
        contributions.append(values[chosen] - max(others) if known else 0.0)
        found.append(known)
    return contributions, found


def test_contributions_by_loop():
    rng = np.random.default_rng(0)
    contribute = jax.jit(marginal_contributions)
    knowns = []
    for _ in range(200):
        size = rng.integers(3, 7)
        items = np.stack([rng.permutation(size)[:K] for _ in range(6)])
        items[:, rng.integers(1, K + 1) :] = -1
        values = rng.choice([-1.0, 0.0, 0.5, 2.0, 3.0], 6)
        where = rng.random(6) < 0.7
        chosen = rng.integers(6)
        where[chosen] = True
        r, found = contribute(values, items, where, chosen)
        expected, known = contributions_by_loop(values, items, where, chosen)
        np.testing.assert_array_equal(found, known)
        np.testing.assert_allclose(r, expected, atol=1e-6)
        knowns += known
    assert 0.2 < np.mean(knowns) < 0.8


def test_the_best_slate_alone_contributes_nothing_that_is_known():
    values, items = jnp.array([3.0, -1e30]), jnp.array([[1, 0, -1], [-1, -1, -1]])
    r, found = marginal_contributions(values, items, jnp.array([True, False]), jnp.int32(0))
    assert found.tolist() == [False] * K
    assert r.tolist() == [0.0] * K


@jax.jit
def run(system, requests):
    prepared = jax.vmap(lambda request: system.prepare(request, LEVERS))(requests)
    return contributions(system, prepared)


@jax.jit
def best_value(system, request, banned):
    prepared = system.prepare(request, LEVERS)
    without = system.find_menu(prepared, absent(banned))
    return system.find_menu(prepared).value.max(), without.value.max()


def test_with_all_beams_both_ways_agree():
    """Where no two items share all codes: an item's absence may bring up one that shares them."""
    system = tiny_ega()
    winners = run(system, REQUESTS)
    found = winners.contribution
    poi_codes = np.asarray(system.items.catalogue.poi_codes)
    compared = 0
    for row, item in enumerate(REQUESTS.item):
        codes = [tuple(poi_codes[poi]) for poi in item[item >= 0]]
        if len(set(codes)) < len(codes):
            continue
        compared += 1
        for slot, item in enumerate(np.asarray(winners.candidate[row])):
            best, without = best_value(system, one(REQUESTS, row), jnp.int32(item))
            expected = best - without if item >= 0 else 0.0
            np.testing.assert_allclose(found[row, slot], expected, rtol=1e-4, atol=1e-5)
    assert compared >= 8
    assert (np.asarray(found) > 0).any()


def test_items_in_every_beam_are_searched_again():
    """One beam: nothing lacks its items, so each contribution comes from another search."""
    single = with_beams(tiny_ega(), 1)
    winners = run(single, REQUESTS)
    found = winners.contribution
    for row in range(4):
        for slot, item in enumerate(np.asarray(winners.candidate[row])):
            best, without = best_value(single, one(REQUESTS, row), jnp.int32(item))
            expected = best - without if item >= 0 else 0.0
            np.testing.assert_allclose(found[row, slot], expected, rtol=1e-4, atol=1e-5)
