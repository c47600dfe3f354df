"""Collision resolution against all permutations."""

import itertools

import numpy as np
import pytest

from ega_jax.quantization import collisions


def distances(left, codebook):
    return np.sum((left[:, None] - codebook[None]) ** 2, axis=-1)


@pytest.mark.parametrize("seed", range(20))
def test_resolution_is_the_cheapest_unique_assignment(seed):
    rng = np.random.default_rng(seed)
    num_codes, n = 5, int(rng.integers(2, 6))
    left, codebook = rng.normal(size=(n, 3)), rng.normal(size=(num_codes, 3))
    cost = distances(left, codebook)
    codes = np.stack([np.zeros(n, int), cost.argmin(axis=1)], axis=1)
    resolved = collisions.resolve(codes, left, codebook)
    last = resolved[:, 1]
    best = min(
        cost[range(n), choice].sum() for choice in itertools.permutations(range(num_codes), n)
    )
    assert len(set(last.tolist())) == n
    np.testing.assert_allclose(cost[range(n), last].sum(), best)
    np.testing.assert_array_equal(resolved[:, 0], 0)


def test_groups_without_collisions_stay():
    rng = np.random.default_rng(0)
    codebook, left = rng.normal(size=(4, 2)), rng.normal(size=(5, 2))
    codes = np.array([[0, 3], [0, 1], [1, 2], [1, 2], [2, 2]])
    resolved = collisions.resolve(codes, left, codebook)
    np.testing.assert_array_equal(resolved[[0, 1, 4]], codes[[0, 1, 4]])
    assert resolved[2, 1] != resolved[3, 1]
    np.testing.assert_array_equal(codes[2:4], [[1, 2], [1, 2]])


def test_more_items_than_codes_fill_every_code():
    rng = np.random.default_rng(1)
    left, codebook = rng.normal(size=(9, 2)), rng.normal(size=(4, 2))
    nearest = distances(left, codebook).argmin(axis=1)
    resolved = collisions.resolve(nearest[:, None], left, codebook)[:, 0]
    assert set(resolved.tolist()) == {0, 1, 2, 3}
    assert (resolved == nearest).sum() >= 9 - 4


@pytest.mark.parametrize("seed", range(3))
def test_many_groups_end_unique(seed):
    rng = np.random.default_rng(seed)
    codebook, left = rng.normal(size=(8, 3)), rng.normal(size=(60, 3))
    prefix = rng.permutation(np.repeat(np.arange(20), 3))
    codes = np.stack([prefix // 5, prefix % 5, distances(left, codebook).argmin(axis=1)], axis=1)
    resolved = collisions.resolve(codes, left, codebook)
    assert len(np.unique(codes, axis=0)) < 60, "the case has no collision"
    assert len(np.unique(resolved, axis=0)) == 60
    np.testing.assert_array_equal(resolved[:, :2], codes[:, :2])


def test_disambiguation_numbers_each_leaf():
    codes = np.array([[1, 2], [0, 2], [1, 2], [1, 2], [0, 1]])
    unique = collisions.disambiguate(codes, num_codes=3)
    np.testing.assert_array_equal(unique[:, :2], codes)
    np.testing.assert_array_equal(unique[:, 2], [0, 0, 1, 2, 0])


def test_disambiguation_names_a_leaf_that_is_too_large():
    with pytest.raises(ValueError, match=r"3 items share the codes \[1, 2\]"):
        collisions.disambiguate(np.array([[1, 2]] * 3), num_codes=2)


@pytest.mark.parametrize("seed", range(20))
def test_new_items_take_the_cheapest_codes_that_are_free(seed):
    rng = np.random.default_rng(seed)
    num_codes, n = 6, int(rng.integers(1, 4))
    taken = rng.choice(num_codes, 3, replace=False)
    known = np.stack([np.zeros(3, int), taken], axis=1)
    left, codebook = rng.normal(size=(n, 3)), rng.normal(size=(num_codes, 3))
    cost = distances(left, codebook)
    nearest = cost.argmin(axis=1)
    codes = np.stack([np.zeros(n, int), nearest], axis=1)
    last = collisions.resolve_beside(known, codes, left, codebook)[:, 1]
    free = [code for code in range(num_codes) if code not in taken]
    best = min(cost[range(n), list(choice)].sum() for choice in itertools.permutations(free, n))
    assert len({*last.tolist(), *taken.tolist()}) == n + 3
    np.testing.assert_allclose(cost[range(n), last].sum(), best)


def test_new_items_without_collisions_keep_their_nearest_codes():
    known = np.array([[0, 1], [1, 3], [1, 2]])
    codes = np.array([[0, 3], [1, 0], [2, 2], [0, 0]])
    left, codebook = np.random.default_rng(0).normal(size=(4, 2)), np.eye(4, 2)
    np.testing.assert_array_equal(collisions.resolve_beside(known, codes, left, codebook), codes)


def test_where_no_code_is_free_new_items_keep_their_nearest():
    known = np.array([[0, 0], [0, 1]])
    codes, left = np.array([[0, 1], [0, 1]]), np.array([[1.0], [1.2]])
    found = collisions.resolve_beside(known, codes, left, np.array([[0.0], [1.0]]))
    np.testing.assert_array_equal(found, codes)


def test_numbers_of_new_items_follow_those_of_the_known():
    known = collisions.disambiguate(np.array([[1, 2], [0, 0], [1, 2]]), 4)
    new = collisions.disambiguate(np.array([[1, 2], [0, 1], [1, 2]]), 4, known)
    np.testing.assert_array_equal(new, [[1, 2, 2], [0, 1, 0], [1, 2, 3]])
    with pytest.raises(ValueError, match="5 items share the codes"):
        collisions.disambiguate(np.array([[1, 2]] * 3), 4, known)
