"""Hand-written gradients against the ones that JAX derives, and at masks and zeros."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ega_jax.generation.gradients import RMSNorm, attend, masked_softmax, rms_norm
from ega_jax.generation.transformer import Attention

B, Q, L, H, E = 2, 3, 4, 2, 5


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm_equals_flax(dtype):
    x = normal(0, B, L, E).astype(dtype)
    params = {"params": {"scale": normal(1, E)}}
    ours, theirs = RMSNorm(dtype), nn.RMSNorm(dtype=dtype)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        ours.init(jax.random.key(0), x), theirs.init(jax.random.key(0), x)
    )
    weights = normal(2, B, L, E)

    def value_and_gradient(module):
        weighted = lambda params, x: jnp.sum(module.apply(params, x) * weights)
        return module.apply(params, x), jax.grad(weighted, argnums=(0, 1))(params, x)

    tolerance = 1e-5 if dtype == "float32" else 5e-2
    found, expected = value_and_gradient(ours), value_and_gradient(theirs)
    chex.assert_trees_all_equal_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=tolerance, atol=tolerance)


def test_norm_of_zeros_has_a_finite_gradient():
    gradient = jax.grad(lambda x: rms_norm(x, jnp.ones(E)).sum())(jnp.zeros((1, E)))
    np.testing.assert_allclose(gradient, np.full((1, E), 1e3), rtol=1e-5)  # 1 / sqrt(1e-6)


def attend_by_definition(query, keys, values, where):
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) / E**0.5
    return jnp.einsum("bhqk,bkhd->bqhd", masked_softmax(scores, where), values)


def attention_inputs():
    where = jax.random.bernoulli(jax.random.key(3), 0.6, (B, 1, Q, L)).at[0, 0, 1].set(False)
    return normal(0, B, Q, H, E), normal(1, B, L, H, E), normal(2, B, L, H, E), where


def gradients(function, *arrays, where):
    weights = normal(4, B, Q, H, E)
    return jax.grad(lambda *x: jnp.sum(function(*x, where) * weights), argnums=(0, 1, 2))(*arrays)


def test_attention_gradient_equals_the_derived_one():
    *arrays, where = attention_inputs()
    found = attend(*arrays, where), gradients(attend, *arrays, where=where)
    expected = (
        attend_by_definition(*arrays, where),
        gradients(attend_by_definition, *arrays, where=where),
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_masked_positions_and_queries_get_no_gradient():
    *arrays, where = attention_inputs()
    where = where.at[..., 2].set(False)
    for_query, for_keys, for_values = gradients(attend, *arrays, where=where)
    assert not np.any(attend(*arrays, where)[0, 1])
    assert not np.any(for_query[0, 1])
    assert not np.any(for_keys[:, 2])
    assert not np.any(for_values[:, 2])
    assert all(np.any(gradient) for gradient in (for_query, for_keys, for_values))


def test_attention_maps_over_requests():
    *arrays, where = attention_inputs()
    mapped = jax.vmap(attend)(*arrays, where)
    np.testing.assert_allclose(mapped, attend(*arrays, where), rtol=1e-6)


def test_attention_takes_a_constant_mask_inside_a_scan():
    x, where = normal(0, 1, Q, 4), np.tri(Q, dtype=bool)[None, None]
    attention = Attention(4, 2, "float32")

    def read(attention):
        return attention(x, attention.keys_values(x), where)

    params = nn.init(read, attention)(jax.random.key(0))
    gradient = jax.grad(lambda params: nn.apply(read, attention)(params).sum())
    _, (scanned,) = jax.lax.scan(lambda _, __: (None, (gradient(params),)), None, length=1)
    chex.assert_trees_all_close(jax.tree.map(lambda y: y[0], scanned), gradient(params), rtol=1e-5)
