"""The RQ-VAE's loss, gradients and codebooks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ega_jax.quantization import autoencoder, kmeans, residual, rqvae

CONFIG = autoencoder.RQVAEConfig(num_layers=2, num_codes=8, hidden=(16,), latent=4, decay=0.9)
KEY = jax.random.key(0)
LOSS = jax.jit(rqvae.make_loss(CONFIG))


@pytest.fixture(scope="module")
def embeddings():
    latent = jax.random.normal(jax.random.key(1), (128, 3))
    features = jnp.tanh(latent @ jax.random.normal(jax.random.key(2), (3, 10)))
    return features * jnp.geomspace(0.01, 10.0, 10)[None] + 3.0


@pytest.fixture(scope="module")
def state(embeddings):
    return jax.jit(rqvae.init, static_argnums=1)(KEY, CONFIG, embeddings)


def test_init_fits_the_codebooks_to_encoded_data(embeddings, state):
    params, variables = state
    x = autoencoder.standardise(embeddings, variables.mean, variables.scale)
    np.testing.assert_allclose(x.std(axis=0), np.ones(10), rtol=1e-4)
    latent = autoencoder.encode(CONFIG, params, x)
    codes, quantized = residual.quantize(latent, variables.codebooks)
    np.testing.assert_allclose(residual.usage(codes, 8), [1, 1])
    assert residual.r2(latent, quantized) > 0.7
    np.testing.assert_allclose(variables.sums, variables.codebooks)


def test_loss_by_hand(embeddings, state):
    params, variables = state
    batch = embeddings[:5]
    loss, (metrics, _) = LOSS(params, variables, {"embedding": batch}, KEY)
    x = (np.asarray(batch) - np.asarray(variables.mean)) / np.asarray(variables.scale)
    reconstruction, commitment = [], []
    for row in np.asarray(autoencoder.encode(CONFIG, params, jnp.asarray(x))):
        left, errors = row, []
        for codebook in np.asarray(variables.codebooks):
            left = left - codebook[np.argmin(np.sum((left - codebook) ** 2, axis=1))]
            errors.append(np.sum(left**2))
        rebuilt = autoencoder.decode(CONFIG, params, jnp.asarray(row - left)[None], 10)[0]
        reconstruction.append(np.sum((x[len(commitment)] - rebuilt) ** 2))
        commitment.append(sum(errors))
    np.testing.assert_allclose(metrics["reconstruction"], np.mean(reconstruction), rtol=1e-3)
    np.testing.assert_allclose(metrics["commitment"], np.mean(commitment), rtol=1e-3)
    expected = np.mean(reconstruction) + 0.25 * np.mean(commitment)
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_gradient_passes_straight_through(embeddings, state):
    params, variables = state
    config = dataclasses.replace(CONFIG, commitment=0.0)
    loss = rqvae.make_loss(config)
    batch = {"embedding": embeddings[:6]}
    found, _ = jax.jit(jax.grad(loss, has_aux=True))(params, variables, batch, KEY)

    x = autoencoder.standardise(batch["embedding"], variables.mean, variables.scale)

    def reconstruction(z):
        return jnp.sum((x - autoencoder.decode(config, params, z, 10)) ** 2, axis=-1).mean()

    @jax.jit
    def by_hand(params):
        latent, pullback = jax.vjp(lambda p: autoencoder.encode(config, p, x), params)
        quantized = residual.quantize(latent, variables.codebooks)[1]
        return pullback(jax.grad(reconstruction)(quantized))[0]

    expected = by_hand(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        found["encoder"],
        expected["encoder"],
    )
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(found["encoder"])) > 1e-3


def test_commitment_pulls_the_latent_to_its_codewords(embeddings, state):
    params, variables = state
    batch = {"embedding": embeddings[:6]}
    grads = []
    for weight in (0.0, 1.0):
        loss = rqvae.make_loss(dataclasses.replace(CONFIG, commitment=weight))
        grads.append(jax.jit(jax.grad(loss, has_aux=True))(params, variables, batch, KEY)[0])
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *grads)
    assert max(jax.tree.leaves(difference["encoder"])) > 1e-3
    assert max(jax.tree.leaves(difference["decoder"])) < 1e-4


def one_layer(counts, codebook):
    config = dataclasses.replace(CONFIG, num_layers=1, num_codes=2, latent=1)
    codebook, counts = jnp.array(codebook)[None, :, None], jnp.array(counts)[None]
    empty = jnp.zeros(1)
    return config, rqvae.Variables(empty, empty, codebook, counts, codebook * counts[..., None])


def test_codewords_follow_the_running_mean():
    config, variables = one_layer([1.0, 1.0], [0.0, 10.0])
    left = jnp.array([[1.0], [2.0], [3.0], [14.0], [99.0]])
    codes, where = jnp.array([[0], [0], [0], [1], [1]]), jnp.arange(5) < 4
    new = rqvae.learn_codebooks(config, variables, left[None], codes, where, KEY)
    mean_count = 4 / 2
    counts = [0.9 + 0.1 * 3 / mean_count, 0.9 + 0.1 * 1 / mean_count]
    sums = [0.1 * (1 + 2 + 3) / mean_count, 0.9 * 10 + 0.1 * 14 / mean_count]
    np.testing.assert_allclose(new.counts[0], counts, rtol=1e-6)
    np.testing.assert_allclose(new.sums[0, :, 0], sums, rtol=1e-6)
    np.testing.assert_allclose(new.codebooks, new.sums / new.counts[..., None], rtol=1e-6)


def test_weak_codes_start_again_from_the_batch():
    config, variables = one_layer([1.0, 0.2], [0.0, 1e6])
    left = jnp.array([[2.0], [4.0], [8.0]])
    codes, where = jnp.zeros((3, 1), int), jnp.array([True, True, False])
    new = rqvae.learn_codebooks(config, variables, left[None], codes, where, KEY)
    drawn = float(new.codebooks[0, 1, 0]) / kmeans.STEP_TO_ROW
    assert min(abs(drawn - 2), abs(drawn - 4)) < 1e-4
    np.testing.assert_allclose(new.counts[0, 1], 1)
    assert abs(float(new.codebooks[0, 0, 0])) < 4


def test_masked_items_count_for_nothing(embeddings, state):
    params, variables = state
    where = jnp.arange(8) < 5
    kept = embeddings[:8] * where[:, None]
    other = jnp.where(where[:, None], kept, 7.0)
    first, second = (
        LOSS(params, variables, {"embedding": x, "where": where}, KEY) for x in (kept, other)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), first, second)
    alone, _ = LOSS(params, variables, {"embedding": embeddings[:5]}, KEY)
    np.testing.assert_allclose(first[0], alone, rtol=1e-4)


def test_nothing_masked_in_is_finite(embeddings, state):
    batch = {"embedding": embeddings[:8], "where": jnp.zeros(8, bool)}
    grad, (metrics, variables) = jax.jit(jax.grad(LOSS, has_aux=True))(*state, batch, KEY)
    finite = jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), (grad, metrics, variables))
    assert all(jax.tree.leaves(finite))
    assert metrics["reconstruction"] == 0


def test_learns_and_keeps_its_codes_in_use(embeddings, state):
    params, variables = state
    optimizer = optax.adam(1e-2)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, variables, key):
        batch = {"embedding": embeddings}
        grad, (metrics, variables) = jax.grad(LOSS, has_aux=True)(params, variables, batch, key)
        updates, opt_state = optimizer.update(grad, opt_state)
        return optax.apply_updates(params, updates), opt_state, variables, metrics

    history = []
    for i in range(150):
        key = jax.random.fold_in(KEY, i)
        params, opt_state, variables, metrics = step(params, opt_state, variables, key)
        history.append(float(metrics["reconstruction"]))
    assert np.mean(history[-10:]) < 0.4 * history[0]
    assert metrics["perplexity"] > 4


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_replicas_learn_the_codebooks_of_the_whole_batch(embeddings, state):
    devices = jax.devices()[:4]
    loss = jax.pmap(
        rqvae.make_loss(CONFIG, axis_name="data"),
        axis_name="data",
        in_axes=(None, None, 0, None),
        devices=devices,
    )
    sharded = {"embedding": embeddings.reshape(4, 32, 10)}
    losses, (_, replicas) = loss(*state, sharded, KEY)
    whole, (_, variables) = LOSS(*state, {"embedding": embeddings}, KEY)
    np.testing.assert_allclose(losses.mean(), whole, rtol=1e-4)
    for replica in range(4):
        for name in ("codebooks", "counts", "sums"):
            found, expected = getattr(replicas, name)[replica], getattr(variables, name)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
