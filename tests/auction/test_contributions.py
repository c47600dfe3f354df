"""Marginal contributions (31) against a search without each item, one at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import CONFIG, LEVERS, one, random_requests, tiny_models

from ega_jax.auction.contributions import contributions
from ega_jax.auction.ega import find_menu
from ega_jax.auction.system import prepare

REQUESTS = random_requests(5, 12)


@functools.partial(jax.jit, static_argnums=0)
def run(config, models, requests):
    offers = jax.vmap(lambda request: prepare(models, config, request))(requests)
    return contributions(models, config, offers, requests.bid, LEVERS)


@functools.partial(jax.jit, static_argnums=0)
def best_value(config, models, request, banned):
    offer = prepare(models, config, request)
    free = find_menu(models, config, offer, request.bid, LEVERS)
    without = find_menu(models, config, offer, request.bid, LEVERS, banned)
    return free.value.max(), without.value.max()


def test_with_all_beams_both_ways_agree():
    models = tiny_models()
    candidate, found = run(CONFIG, models, REQUESTS)
    for row in range(12):
        for slot, item in enumerate(np.asarray(candidate[row])):
            best, without = best_value(CONFIG, models, one(REQUESTS, row), jnp.int32(item))
            expected = best - without if item >= 0 else 0.0
            np.testing.assert_allclose(found[row, slot], expected, rtol=1e-4, atol=1e-5)
    assert (np.asarray(found) > 0).any()


def test_items_in_every_beam_are_searched_again():
    """One beam: nothing lacks its items, so each contribution comes from another search."""
    models = tiny_models()
    single = dataclasses.replace(CONFIG, num_beams=1)
    candidate, found = run(single, models, REQUESTS)
    for row in range(4):
        for slot, item in enumerate(np.asarray(candidate[row])):
            best, without = best_value(single, models, one(REQUESTS, row), jnp.int32(item))
            expected = best - without if item >= 0 else 0.0
            np.testing.assert_allclose(found[row, slot], expected, rtol=1e-4, atol=1e-5)
