"""Both tokenizers through their one interface."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.quantization import autoencoder, collisions, kmeans, residual, rqvae, tokenizer

N, E, C, W = 200, 12, 3, 16
KMEANS = kmeans.KMeansConfig(C, W, num_iterations=15)
RQVAE = autoencoder.RQVAEConfig(C, W, hidden=(8,), latent=4)


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, E)) * 3
    return (centres[rng.integers(0, 10, N)] + rng.normal(size=(N, E))).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(embeddings):
    key = jax.random.key(0)
    params, variables = jax.jit(rqvae.init, static_argnums=1)(key, RQVAE, embeddings)
    return {
        "kmeans": tokenizer.fit_kmeans(KMEANS, embeddings, key),
        "rqvae": tokenizer.from_rqvae(RQVAE, params, variables),
    }


@pytest.fixture(params=["kmeans", "rqvae"])
def kind(request):
    return request.param


def test_codes_are_those_of_the_latent(embeddings, fitted, kind):
    fit = fitted[kind]
    codes = tokenizer.assign(fit, embeddings, resolve=False)
    latent = tokenizer.encode(fit, embeddings)
    assert latent.shape == (N, {"kmeans": E, "rqvae": RQVAE.latent}[kind])
    np.testing.assert_array_equal(codes, residual.quantize(latent, fit.codebooks)[0])


def test_assignment_leaves_no_collision(embeddings, fitted, kind):
    plain = tokenizer.assign(fitted[kind], embeddings, resolve=False)
    codes = tokenizer.assign(fitted[kind], embeddings)
    assert codes.shape == (N, C)
    assert codes.dtype == np.int32
    assert len(np.unique(plain, axis=0)) < N
    assert len(np.unique(codes, axis=0)) == N
    np.testing.assert_array_equal(codes[:, :-1], plain[:, :-1])


def test_copies_get_codes_of_their_own(embeddings, fitted):
    copies = np.concatenate([embeddings, np.repeat(embeddings[:1], 4, axis=0)])
    codes = tokenizer.assign(fitted["kmeans"], copies)
    together = codes[N:]
    assert len(np.unique(together, axis=0)) == 4


def test_decode_is_the_inverse_up_to_the_codes(embeddings, fitted):
    fit = fitted["kmeans"]
    codes = tokenizer.assign(fit, embeddings, resolve=False)
    rebuilt = np.asarray(tokenizer.decode(fit, codes))
    total = sum(np.asarray(fit.codebooks)[j][codes[:, j]] for j in range(C))
    expected = total * np.asarray(fit.scale) + embeddings.mean(axis=0)
    np.testing.assert_allclose(rebuilt, expected, rtol=1e-4, atol=1e-5)


def test_kmeans_keeps_the_geometry(embeddings, fitted):
    latent = np.asarray(tokenizer.encode(fitted["kmeans"], embeddings))
    ratio = np.linalg.norm(latent[1:] - latent[0], axis=1)
    ratio /= np.linalg.norm(embeddings[1:] - embeddings[0], axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_report(embeddings, fitted):
    fit = fitted["kmeans"]
    codes = tokenizer.assign(fit, embeddings, resolve=False)
    codes[1] = codes[0]
    found = tokenizer.report(fit, embeddings, codes)
    _, counts = np.unique(codes, axis=0, return_counts=True)
    used = [len(set(codes[:, j].tolist())) for j in range(C)]
    error = np.sum((embeddings - np.asarray(tokenizer.decode(fit, codes))) ** 2)
    variance = np.sum((embeddings - embeddings.mean(axis=0)) ** 2)
    np.testing.assert_allclose(found["usage"], [u / W for u in used])
    np.testing.assert_allclose(found["usage_attainable"], found["usage"])
    np.testing.assert_allclose(found["r2"], 1 - error / variance, rtol=1e-4)
    np.testing.assert_allclose(found["collision_rate"], counts[counts > 1].sum() / N, rtol=1e-5)
    assert found["largest_leaf"] == counts.max()
    assert len(found["perplexity"]) == C


def test_report_of_few_items_measures_what_is_attainable(embeddings, fitted):
    fit, few = fitted["kmeans"], embeddings[:32]
    found = tokenizer.report(fit, few, tokenizer.assign(fit, few))
    attainable = 32 / 4 / W
    expected = np.minimum(np.array(found["usage"]) / attainable, 1)
    np.testing.assert_allclose(found["usage_attainable"], expected)


def test_report_with_a_disambiguation_layer(embeddings, fitted):
    fit = fitted["kmeans"]
    plain = tokenizer.assign(fit, embeddings, resolve=False)
    longer = collisions.disambiguate(plain, W)
    found = tokenizer.report(fit, embeddings, longer)
    assert found["collision_rate"] == 0
    assert found["r2"] == pytest.approx(tokenizer.report(fit, embeddings, plain)["r2"])
    assert len(found["usage"]) == C


def test_abstract_has_the_shapes_of_the_fitted(fitted, kind):
    shapes = tokenizer.abstract(fitted[kind].config, E)
    found = jax.tree.map(lambda x: (x.shape, x.dtype), fitted[kind])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == found


def test_rqvae_initialises_under_the_training_contract(embeddings):
    params, variables = rqvae.init(jax.random.key(0), RQVAE, jnp.asarray(embeddings))
    batch = {"embedding": jnp.asarray(embeddings)}
    out = rqvae.make_loss(RQVAE)(params, variables, batch, jax.random.key(1))
    assert jax.tree.structure(out[1][1]) == jax.tree.structure(variables)
    assert out[0].shape == ()


def with_value(x, row, value):
    x = x.copy()
    x[row, 0] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:0], r"non-empty .* found \(0, 12\)"),
        (lambda x: x[0], "non-empty"),
        (lambda x: x[: W - 1], "15 items cannot fill 16 codes"),
        (lambda x: np.full_like(x, np.nan), r"item 0 is not finite \(200 such items\)"),
        (lambda x: with_value(x, 7, np.inf), r"item 7 is not finite \(1 such items\)"),
    ],
)
def test_bad_embeddings_are_named(embeddings, change, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.fit_kmeans(KMEANS, change(embeddings), jax.random.key(0))
