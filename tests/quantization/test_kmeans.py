"""k-means finds clusters, leaves no code empty and beats random centroids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.quantization import kmeans, residual

W = 16


def error(x, centroids):
    return np.sum((x - centroids[residual.nearest(x, centroids)]) ** 2, axis=-1).mean()


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(W, 8)) * 5
    return jnp.asarray(np.repeat(centres, 20, axis=0) + rng.normal(size=(W * 20, 8)) * 0.1, "f4")


@pytest.fixture(scope="module")
def ball():
    """One cluster of wide vectors: what residuals look like."""
    return jax.random.normal(jax.random.key(1), (800, 64))


def test_beats_random_rows(blobs):
    keys = [jax.random.key(seed) for seed in range(3)]
    fitted = [error(blobs, kmeans.kmeans(key, blobs, W)) for key in keys]
    rows = [error(blobs, jax.random.choice(key, blobs, (W,), replace=False)) for key in keys]
    assert sum(fitted) < 0.6 * sum(rows)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("data", ["blobs", "ball"])
def test_no_code_is_empty(request, data, seed):
    x = request.getfixturevalue(data)
    centroids = kmeans.kmeans(jax.random.key(seed), x, W)
    assert set(np.asarray(residual.nearest(x, centroids)).tolist()) == set(range(W))


def test_wide_data_is_shared_among_the_codes(ball):
    centroids = kmeans.kmeans(jax.random.key(0), ball, W)
    counts = np.bincount(residual.nearest(ball, centroids), minlength=W)
    assert counts.max() < 4 * len(ball) / W


def test_as_many_items_as_codes():
    x = jax.random.normal(jax.random.key(0), (W, 3))
    centroids = kmeans.kmeans(jax.random.key(1), x, W, num_iterations=40)
    assert len(set(np.asarray(residual.nearest(x, centroids)).tolist())) == W
    assert jnp.isfinite(centroids).all()


def test_centroids_are_the_means_of_their_points(blobs):
    centroids = kmeans.kmeans(jax.random.key(0), blobs, W, num_iterations=60)
    codes = np.asarray(residual.nearest(blobs, centroids))
    for w in range(W):
        np.testing.assert_allclose(centroids[w], blobs[codes == w].mean(axis=0), atol=1e-4)


def test_each_layer_lowers_the_error(ball):
    codebooks = kmeans.residual_kmeans(jax.random.key(0), ball, kmeans.KMeansConfig(3, W))
    assert codebooks.shape == (3, W, 64)
    errors = [
        float(jnp.sum((ball - residual.quantize(ball, codebooks[:layers])[1]) ** 2))
        for layers in (1, 2, 3)
    ]
    assert (
        float(jnp.sum((ball - ball.mean(axis=0, keepdims=True)) ** 2))
        > errors[0]
        > errors[1]
        > errors[2]
    )


def test_code_sums_skip_what_is_masked():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    codes, where = jnp.array([2, 0, 2]), jnp.array([True, True, False])
    count, total = kmeans.code_sums(x, codes, where, 3)
    np.testing.assert_array_equal(count, [1, 0, 1])
    np.testing.assert_array_equal(total, [[3, 4], [0, 0], [1, 2]])


def test_splits_lie_between_centre_and_row():
    x = jnp.arange(1.0, 7.0)[:, None]
    where = jnp.array([True] * 5 + [False])
    new = kmeans.split_clusters(jax.random.key(0), x, jnp.zeros_like(x), where, 5, step=0.5)
    np.testing.assert_allclose(np.sort(new[:, 0]), [0.5, 1, 1.5, 2, 2.5])
    many = kmeans.split_clusters(jax.random.key(0), x, jnp.zeros_like(x), where, 64, step=1.0)
    assert many.shape == (64, 1)
    assert set(np.asarray(many[:, 0]).tolist()) == {1, 2, 3, 4, 5}
