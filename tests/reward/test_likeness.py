"""Matches and log-densities against loops over heads and pairs."""

import jax
import numpy as np

from ega_jax.reward.likeness import FLOOR, Likeness

LIKENESS = Likeness(width=6, num_heads=2, dtype="float32")


def compare_by_loops(here, there, weight):
    heads, width = here.shape[1:]
    match, density = np.zeros((2, *here.shape[:2]))
    for i in range(len(here)):
        for h in range(heads):
            for j in range(len(there)):
                distance = sum((here[i, h, f] - there[j, h, f]) ** 2 for f in range(width)) / width
                density[i, h] += weight[h, i, j] * np.exp(-distance)
                match[i, h] += weight[h, i, j] * (here[i, h] @ there[j, h]) / np.sqrt(width)
    return np.concatenate([match, np.log(density + FLOOR)], axis=1)


def test_match_and_density_by_loops():
    rng = np.random.default_rng(0)
    here, there = rng.normal(size=(3, 2, 4)), rng.normal(size=(5, 2, 4))
    weight = rng.random((2, 3, 5))
    found = LIKENESS.apply({}, *(x.astype(np.float32) for x in (here, there, weight)))
    np.testing.assert_allclose(found, compare_by_loops(here, there, weight), rtol=1e-4)


def test_density_counts_the_like_and_ignores_the_unlike():
    here = np.zeros((1, 2, 3), np.float32)
    there = np.concatenate([np.zeros((4, 2, 3)), np.full((3, 2, 3), 50.0)]).astype(np.float32)
    found = LIKENESS.apply({}, here, there, np.ones((1, 1, 7), np.float32))
    np.testing.assert_allclose(found[:, 2:], np.log(4 + FLOOR), rtol=1e-6)


def test_heads_are_split_off_the_width_and_gradients_finite_at_distance_0():
    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)

    def loss(params):
        def whole(model):
            places = model.places(x)
            return model(places, places, np.ones((1, 4, 4), np.float32)).sum()

        return LIKENESS.apply({"params": params}, method=whole)

    params = LIKENESS.init(jax.random.key(0), x, method="places")["params"]
    assert LIKENESS.apply({"params": params}, x, method="places").shape == (4, 2, 3)
    grads = jax.grad(loss)(params)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))
