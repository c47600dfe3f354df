"""Residual quantisation and its figures against loops."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.quantization import residual


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    return rng.normal(size=(37, 6)).astype(np.float32), rng.normal(size=(3, 8, 6)).astype("f4")


def quantize_by_hand(x, codebooks):
    codes = np.zeros((len(x), len(codebooks)), int)
    for i, vector in enumerate(x):
        left = vector.copy()
        for j, codebook in enumerate(codebooks):
            codes[i, j] = min(range(len(codebook)), key=lambda w: np.sum((left - codebook[w]) ** 2))
            left = left - codebook[codes[i, j]]
    return codes


def test_quantize_takes_the_nearest_code_layer_by_layer(case):
    x, codebooks = case
    codes, quantized = residual.quantize(x, codebooks)
    expected = quantize_by_hand(x, codebooks)
    np.testing.assert_array_equal(codes, expected)
    total = sum(codebooks[j][expected[:, j]] for j in range(3))
    np.testing.assert_allclose(quantized, total, rtol=1e-5)
    np.testing.assert_allclose(residual.reconstruct(codes, codebooks), total, rtol=1e-5)


def test_layers_are_given_what_is_left(case):
    x, codebooks = case
    codes, residuals = residual.quantize_layers(x, codebooks)
    np.testing.assert_array_equal(residuals[0], x)
    np.testing.assert_allclose(residuals[2], residuals[1] - codebooks[1][codes[:, 1]], rtol=1e-5)


def test_chunks_change_nothing(case, monkeypatch):
    x, codebooks = case
    whole = residual.nearest(x, codebooks[0])
    monkeypatch.setattr(residual, "CHUNK", 10)
    np.testing.assert_array_equal(residual.nearest(x, codebooks[0]), whole)


def test_ties_take_the_lowest_code():
    codebook = jnp.array([[2.0], [1.0], [-1.0], [1.0]])
    np.testing.assert_array_equal(residual.nearest(jnp.array([[0.0], [1.0]]), codebook), [1, 1])


def test_gradient_reaches_the_vector_but_not_the_choice(case):
    x, codebooks = case

    def last_residual(x):
        return residual.quantize_layers(x, codebooks)[1][2].sum()

    np.testing.assert_allclose(jax.grad(last_residual)(x), np.ones_like(x))


def test_jit_and_vmap_agree(case):
    x, codebooks = case
    codes, _ = residual.quantize(x, codebooks)
    np.testing.assert_array_equal(jax.jit(residual.quantize)(x, codebooks)[0], codes)
    halves = jax.vmap(residual.quantize, in_axes=(0, None))(x[:36].reshape(2, 18, 6), codebooks)
    np.testing.assert_array_equal(halves[0].reshape(36, 3), codes[:36])


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_pmap_agrees(case):
    x, codebooks = case
    shards = x[:36].reshape(4, 9, 6)
    codes, _ = jax.pmap(residual.quantize, in_axes=(0, None))(shards, codebooks)
    np.testing.assert_array_equal(codes.reshape(36, 3), quantize_by_hand(x[:36], codebooks))


def test_usage_and_perplexity():
    codes = jnp.array([[0, 1], [0, 1], [2, 1], [2, 1]])
    np.testing.assert_array_equal(residual.counts(codes, 4), [[2, 0, 2, 0], [0, 4, 0, 0]])
    np.testing.assert_allclose(residual.usage(codes, 4), [2 / 4, 1 / 4])
    np.testing.assert_allclose(residual.perplexity(codes, 4), [2, 1], rtol=1e-5)


def test_leaves_are_counted():
    codes = np.random.default_rng(1).integers(0, 3, (50, 3))
    leaves = Counter(map(tuple, codes.tolist()))
    np.testing.assert_array_equal(np.sort(residual.leaf_sizes(codes)), sorted(leaves.values()))
    alone = sum(count for count in leaves.values() if count == 1)
    assert residual.collision_rate(residual.leaf_sizes(codes)) == 1 - alone / 50


def test_leaves_of_a_large_code_space_are_told_apart():
    codes = np.stack([np.arange(4096), 2**21 - 1 - np.arange(4096)], axis=1).astype(np.int32)
    assert residual.collision_rate(residual.leaf_sizes(codes)) == 0


def test_r2(case):
    x, _ = case
    mean = np.broadcast_to(x.mean(axis=0), x.shape)
    halfway = 0.5 * (x + mean)
    np.testing.assert_allclose(residual.r2(x, x), 1, rtol=1e-6)
    np.testing.assert_allclose(residual.r2(x, mean), 0, atol=1e-6)
    np.testing.assert_allclose(residual.r2(x, halfway), 1 - 0.5**2, rtol=1e-5)
    assert residual.r2(jnp.ones((3, 2)), jnp.zeros((3, 2))) == 0
