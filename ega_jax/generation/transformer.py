"""Transformer blocks with explicit key/value caches.

Blocks are pre-norm with RMSNorm and bias-free projections. Keys and values are plain pytrees owned
by the caller. Those of the encoder are computed once per request and shared by all beams; those of
a decoder are appended step by step (see `beam_search.py`).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from ega_jax.generation.gradients import RMSNorm, attend, masked_softmax


@struct.dataclass
class KeysValues:
    """Keys and values of one attention layer over `L` positions of `H` heads."""

    keys: jax.Array  # [..., L, H, D / H]
    values: jax.Array  # [..., L, H, D / H]


def row_wise_dot(x: jax.Array, kernel: jax.Array, dimension_numbers=None, **kwargs) -> jax.Array:
    """`x [..., D] @ kernel [D, F]` as one matrix product, for `nn.Dense`.

    Since the leading axes are flattened, the kernel's gradient is a plain matrix product too. CPUs
    compute it much faster than a contraction over several axes.
    """
    del dimension_numbers  # `nn.Dense` always contracts the last axis with the first.
    rows = x.reshape(-1, x.shape[-1])
    product = lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **kwargs)
    return product.reshape(*x.shape[:-1], kernel.shape[1])


def linear(width: int, dtype: str) -> nn.Dense:
    """A bias-free projection of the last axis to `width`."""
    return nn.Dense(width, use_bias=False, dtype=dtype, dot_general=row_wise_dot)


def embedding(number: int, width: int, dtype: str) -> nn.Embed:
    """An embedding table, initialised to vectors of norm about 1."""
    small = nn.initializers.normal(width**-0.5)
    return nn.Embed(number, width, dtype=dtype, embedding_init=small)


class Attention(nn.Module):
    """Multi-head dot-product attention; the caller passes keys and values."""

    width: int
    num_heads: int
    dtype: str

    def setup(self):
        """Declares the four projections."""
        self.query = linear(self.width, self.dtype)
        self.key = linear(self.width, self.dtype)
        self.value = linear(self.width, self.dtype)
        self.out = linear(self.width, self.dtype)

    def keys_values(self, x: jax.Array) -> KeysValues:
        """Projects `x [..., L, D]` to keys and values of its `L` positions."""
        heads = (*x.shape[:-1], self.num_heads, self.width // self.num_heads)
        return KeysValues(self.key(x).reshape(heads), self.value(x).reshape(heads))

    def __call__(self, x: jax.Array, kv: KeysValues, where: jax.Array) -> jax.Array:
        """Attends from `x [..., Q, D]` to `kv`; the result is 0 for a fully masked query.

        Args:
          x: `[..., Q, D]` inputs of the queries.
          kv: keys and values, `[..., L, H, D / H]`.
          where: bool, broadcastable to `[..., H, Q, L]`: the positions each query may attend to.

        Returns:
          `[..., Q, D]`.
        """
        query = self.query(x).reshape(*x.shape[:-1], self.num_heads, -1)
        # Inside a scan, a function with its own gradient refuses arrays that are constants.
        traced = jnp.where(where, True, False)
        mixed = attend(query, kv.keys, kv.values, traced)
        return self.out(mixed.reshape(*x.shape[:-1], self.width))

    def one_query_each(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, where: jax.Array
    ) -> jax.Array:
        """Attends from each row of `x [S, D]` to the keys and values of that row.

        This equals `__call__` with `Q = 1`. The position axis of keys is last and that of values is
        the first after `S`, so both sums run over an outer axis, which compilers vectorise.

        Args:
          x: `[S, D]` inputs of the queries.
          keys: `[S, H, D / H, L]`.
          values: `[S, L, H, D / H]`.
          where: `[L]` bool, the positions that the queries may attend to.

        Returns:
          `[S, D]`.
        """
        query = self.query(x).reshape(x.shape[0], self.num_heads, -1, 1)
        scores = jnp.sum(query * keys, axis=2) * query.shape[2] ** -0.5
        probs = masked_softmax(scores, where).astype(values.dtype)
        mixed = jnp.sum(jnp.swapaxes(probs, 1, 2)[..., None] * values, axis=1)
        return self.out(mixed.reshape(x.shape))


class Mlp(nn.Module):
    """Two-layer MLP with a ReLU, `[..., D] -> [..., D]`."""

    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the MLP to the last axis."""
        hidden = nn.relu(linear(self.hidden, self.dtype)(x))
        return linear(x.shape[-1], self.dtype)(hidden)


class Block(nn.Module):
    """Self-attention, optional cross-attention and MLP, each pre-norm with a residual connection.

    `__call__` runs on whole sequences. Decoding manages its own caches: `self_keys_values` returns
    the cache entries of new positions, `step` takes all keys and values.
    """

    width: int
    num_heads: int
    hidden: int
    dtype: str
    cross: bool = False
    dropout_rate: float = 0.0

    def setup(self):
        """Declares the layers of the block."""
        self.self_norm = RMSNorm(dtype=self.dtype)
        self.self_attention = Attention(self.width, self.num_heads, self.dtype)
        if self.cross:
            self.cross_norm = RMSNorm(dtype=self.dtype)
            self.cross_attention = Attention(self.width, self.num_heads, self.dtype)
        self.mlp_norm = RMSNorm(dtype=self.dtype)
        self.mlp = Mlp(self.hidden, self.dtype)
        self.dropout = nn.Dropout(self.dropout_rate)

    def self_keys_values(self, x: jax.Array) -> KeysValues:
        """Self-attention keys and values of the positions `x [..., L, D]`."""
        return self.self_attention.keys_values(self.self_norm(x))

    def cross_keys_values(self, memory: jax.Array) -> KeysValues:
        """Cross-attention keys and values of the encoder's output `memory [..., L, D]`."""
        return self.cross_attention.keys_values(memory)

    def __call__(
        self,
        x: jax.Array,
        self_where: jax.Array,
        cross_kv: KeysValues | None = None,
        cross_where: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Runs the block on a sequence `x [..., Q, D]`; masks broadcast to `[..., H, Q, L]`."""
        drop = lambda y: self.dropout(y, deterministic=deterministic)
        normed = self.self_norm(x)
        kv = self.self_attention.keys_values(normed)
        x = x + drop(self.self_attention(normed, kv, self_where))
        if cross_kv is not None and cross_where is not None:
            x = x + drop(self.cross_attention(self.cross_norm(x), cross_kv, cross_where))
        return x + drop(self.mlp(self.mlp_norm(x)))

    def step(
        self,
        x: jax.Array,
        self_keys: jax.Array,
        self_values: jax.Array,
        self_where: jax.Array,
        cross_kv: KeysValues,
        cross_where: jax.Array,
    ) -> jax.Array:
        """Runs a decoder block at one position of `S` beams that share cross-attention inputs.

        Args:
          x: `[S, D]` inputs.
          self_keys: `[S, H, D / H, L]` each beam's keys.
          self_values: `[S, L, H, D / H]` each beam's values.
          self_where: `[L]` bool, positions already written.
          cross_kv: `[L', H, D / H]` keys and values of the request, shared by all beams.
          cross_where: `[L']` bool, False at padding of the history.

        Returns:
          `[S, D]`.
        """
        normed = self.self_norm(x)
        x = x + self.self_attention.one_query_each(normed, self_keys, self_values, self_where)
        x = x + self.cross_attention(self.cross_norm(x), cross_kv, cross_where)
        return x + self.mlp(self.mlp_norm(x))
