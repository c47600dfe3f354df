"""The generator: encoder, POI decoder, creative decoder (paper sec. 4.1).

The encoder reads the history, and the request's context as one more position if the log has one.

The POI decoder predicts the `K * C` codes of a slate autoregressively, with cross-attention to the
history (15). The creative decoder is the multi-token-prediction module (16): it predicts the `C`
codes of a slot's creative from the slot's POI and the POI decoder's state. Neither the POI decoder
nor the creatives of other slots depend on a creative, so all creatives of a slate can be chosen at
once when its POIs are known.
"""

import dataclasses
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from ega_jax.generation.gradients import RMSNorm
from ega_jax.generation.transformer import Block, KeysValues, Mlp, embedding, linear, row_wise_dot
from ega_jax.setting import DTYPES, setting
from ega_jax.types import Catalogue, SessionSizes


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """Sizes common to all networks with attention."""

    width: int = setting(64, at_least=1)  # D
    num_heads: int = setting(8, at_least=1)  # Attention heads; must divide the width.
    hidden: int = setting(128, at_least=1)  # Width of the MLPs' hidden layers.
    dtype: str = setting("float32", choices=DTYPES)  # Computation dtype; parameters are float32.

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields a problem if the number of heads does not divide the width."""
        if self.width % self.num_heads:
            yield "num_heads", f"{self.num_heads} heads do not divide a width of {self.width}"


@dataclasses.dataclass(frozen=True)
class GeneratorSettings(NetworkSettings):
    """The group `generator`."""

    width: int = 128
    num_heads: int = 4
    hidden: int = 512
    encoder_blocks: int = setting(3, at_least=1)
    decoder_blocks: int = setting(3, at_least=1)
    multi_token: bool = setting(True)  # False: creatives do not use the POI decoder (EGA-mtp).
    dropout_rate: float = setting(0.0, at_least=0, below=1)
    history_dropout: float = setting(0.0, at_least=0, below=1)  # Share of behaviours dropped.


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(GeneratorSettings, SessionSizes):
    """Sizes of the generator; for the letters see the legend in `types.py`."""

    creatives: bool = True


@struct.dataclass
class Memory:
    """Cross-attention keys and values of a request, computed once per request."""

    poi: tuple[KeysValues, ...]  # One per POI decoder block, each [..., L, H, D / H].
    creative: tuple[KeysValues, ...]  # One for the creative decoder block; empty without creatives.
    where: jax.Array  # [..., L] bool, False at padding.


@struct.dataclass
class Logits:
    """Teacher-forced predictions of a batch of slates."""

    poi: jax.Array  # [..., K, C, W] float32.
    creative: jax.Array | None  # [..., K, C, W] float32; None without creatives.


class CodeEmbedding(nn.Module):
    """One embedding table and one output head per codebook layer."""

    config: GeneratorConfig

    def setup(self):
        """Declares tables `[C, W, D]` and heads `[C, D, W]`."""
        c = self.config
        self.norm = RMSNorm(dtype=c.dtype)
        self.table = self.param(
            "table", nn.initializers.normal(c.width**-0.5), (c.num_layers, c.num_codes, c.width)
        )
        self.head = self.param(
            "head", nn.initializers.normal(c.width**-0.5), (c.num_layers, c.width, c.num_codes)
        )

    def codes(self, codes: jax.Array, layers: jax.Array) -> jax.Array:
        """Embeds `codes [..., L]` of the layers `layers [L]` as `[..., L, D]`."""
        flat = self.table.reshape(-1, self.config.width)
        return flat[codes + layers * self.config.num_codes].astype(self.config.dtype)

    def items(self, codes: jax.Array) -> jax.Array:
        """Embeds items as the sum of their code embeddings: `[..., C]` to `[..., D]`."""
        return self.codes(codes, jnp.arange(self.config.num_layers)).sum(-2)

    def logits(self, states: jax.Array) -> jax.Array:
        """Next-code logits of all layers, `[..., C, D] -> [..., C, W]`."""
        layers = range(self.config.num_layers)
        return jnp.stack([self.layer_logits(states[..., j, :], j) for j in layers], axis=-2)

    def layer_logits(self, state: jax.Array, layer: chex.Numeric) -> jax.Array:
        """Next-code logits of one layer, `[..., D] -> [..., W]`."""
        state = self.norm(state)
        return row_wise_dot(state, self.head[layer].astype(state.dtype)).astype(jnp.float32)


class Generator(nn.Module):
    """Encoder, POI decoder and creative decoder over semantic tokens.

    Methods accept any leading batch axes, so the same code runs the teacher-forced pass over a
    batch and the stepwise pass over the beams of one request.
    """

    config: GeneratorConfig

    def setup(self):
        """Declares embeddings, heads and blocks."""
        c = self.config
        block = lambda cross: Block(
            c.width, c.num_heads, c.hidden, c.dtype, cross=cross, dropout_rate=c.dropout_rate
        )
        embed = lambda number: embedding(number, c.width, c.dtype)
        self.dropout = nn.Dropout(c.dropout_rate)
        self.poi = CodeEmbedding(c)
        self.recency = embed(c.history_length)
        if c.context.width:
            self.context = nn.Dense(c.width, dtype=c.dtype, dot_general=row_wise_dot)
        self.encoder = [block(False) for _ in range(c.encoder_blocks)]
        self.encoder_norm = RMSNorm(dtype=c.dtype)
        self.slot = embed(c.num_slots)
        self.layer = embed(c.num_layers)
        self.begin = self.param("begin", nn.initializers.normal(c.width**-0.5), (c.width,))
        self.decoder = [block(True) for _ in range(c.decoder_blocks)]
        if c.creatives:
            self.creative = CodeEmbedding(c)
            self.modality = embed(2)
            self.state_norm = RMSNorm(dtype=c.dtype)
            self.item_norm = RMSNorm(dtype=c.dtype)
            self.creative_in = linear(c.width, c.dtype)
            self.creative_block = block(True)
            self.creative_mlp = Mlp(c.hidden, c.dtype)

    def encode(
        self,
        poi: jax.Array,
        creative: jax.Array,
        catalogue: Catalogue,
        context: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> Memory:
        """Encodes histories (sec. 4.1.3), with one position per POI and one per creative.

        Choice: the context is one more position, the last one, which is never masked.

        Args:
          poi: `[..., T]` POI ids, most recent last, -1 padding.
          creative: `[..., T]` creative ids, likewise; ignored without creatives.
          catalogue: the items' codes.
          context: `[..., X]` contexts as logged; ignored by a model that reads none.
          deterministic: whether dropout is off.

        Returns:
          The cross-attention inputs of the decoder blocks.
        """
        x, where = self._history(poi, creative, catalogue)
        if self.config.context.width:
            x, where = self._with_context(x, where, context)
        x = self.dropout(x, deterministic=deterministic)
        for block in self.encoder:
            seen = where[..., None, None, :]
            x = block(x, seen, deterministic=deterministic)
        x = self.encoder_norm(x)
        y = x if self.config.multi_token else lax.stop_gradient(x)
        return Memory(
            poi=tuple(block.cross_keys_values(x) for block in self.decoder),
            creative=(self.creative_block.cross_keys_values(y),) if self.config.creatives else (),
            where=where,
        )

    def _history(self, poi, creative, catalogue):
        """Input embeddings `[..., L, D]` and mask `[..., L]` of the encoder's positions."""
        recency = self.recency(jnp.arange(poi.shape[-1])[::-1])
        x = self.poi.items(catalogue.poi_codes[jnp.maximum(poi, 0)]) + recency
        if not self.config.creatives:
            return x, poi >= 0
        y = self.creative.items(catalogue.creative_codes[jnp.maximum(creative, 0)]) + recency
        pairs = jnp.stack([x, y], axis=-2) + self.modality(jnp.arange(2))
        where = jnp.stack([poi >= 0, creative >= 0], axis=-1)
        return pairs.reshape(*x.shape[:-2], -1, x.shape[-1]), where.reshape(*where.shape[:-2], -1)

    def _with_context(self, x, where, context):
        """Appends the position of the context to embeddings `[..., L, D]` and mask `[..., L]`."""
        if context is None:
            raise ValueError(f"the model reads a context of {self.config.context.width} values")
        position = self.context(self.config.context.standardised(context))[..., None, :]
        always = jnp.ones_like(where[..., :1])
        return jnp.concatenate([x, position], -2), jnp.concatenate([where, always], -1)

    def __call__(
        self,
        memory: Memory,
        poi_codes: jax.Array,
        creative_codes: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> Logits:
        """Teacher-forced logits of the slates' codes (15)-(16).

        Args:
          memory: encoded requests.
          poi_codes: `[..., K, C]` codes of the slates' POIs.
          creative_codes: `[..., K, C]` codes of the slates' creatives, or None.
          deterministic: whether dropout is off.

        Returns:
          Logits of each code given the preceding codes.
        """
        states = self.poi_states(memory, poi_codes, deterministic=deterministic)
        creative = None
        if self.config.creatives and creative_codes is not None:
            slots = self.creative_slots(
                memory, states[..., -1, :], poi_codes, deterministic=deterministic
            )
            creative = self.creative_logits(slots, creative_codes)
        return Logits(self.poi.logits(states), creative)

    def poi_states(
        self, memory: Memory, poi_codes: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """POI decoder states `[..., K, C, D]` that predict each of the codes `[..., K, C]`."""
        c = self.config
        slots, layers = poi_codes.shape[-2:]
        flat = poi_codes.reshape(*poi_codes.shape[:-2], slots * layers)
        before = self.poi.codes(flat[..., :-1], jnp.arange(slots * layers - 1) % layers)
        begin = jnp.broadcast_to(self.begin.astype(c.dtype), (*before.shape[:-2], 1, c.width))
        x = jnp.concatenate([begin, before], axis=-2) + self.positions(slots)
        x = self.dropout(x, deterministic=deterministic)
        causal = jnp.tril(jnp.ones((x.shape[-2], x.shape[-2]), bool))
        seen = memory.where[..., None, None, :]
        for block, cross in zip(self.decoder, memory.poi, strict=True):
            x = block(x, causal, cross, seen, deterministic=deterministic)
        return x.reshape(*poi_codes.shape, c.width)

    def positions(self, slots: int) -> jax.Array:
        """Position embeddings `[slots * C, D]`: slot embedding plus layer embedding."""
        layer = self.layer(jnp.arange(self.config.num_layers))
        return (self.slot(jnp.arange(slots))[:, None] + layer).reshape(-1, self.config.width)

    def begin_input(self) -> jax.Array:
        """Input `[D]` of the POI decoder's first position, before its position embedding."""
        return self.begin.astype(self.config.dtype)

    def code_input(self, codes: jax.Array, layer: chex.Numeric) -> jax.Array:
        """Inputs `[..., D]` of the next position, given the codes `[...]` of layer `layer`."""
        return self.poi.codes(codes[..., None], jnp.asarray(layer)[None])[..., 0, :]

    def block_keys_values(self, block: int, x: jax.Array) -> KeysValues:
        """Keys and values of a POI decoder block for new positions `x [S, D]`: `[S, H, D / H]`."""
        return self.decoder[block].self_keys_values(x)

    def block_step(
        self,
        block: int,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        where: jax.Array,
        memory: Memory,
    ) -> jax.Array:
        """Runs one POI decoder block at one position of each beam.

        Args:
          block: index of the block.
          x: `[S, D]` the beams' states.
          keys: `[S, H, D / H, L]` keys of each beam's past and current position.
          values: `[S, L, H, D / H]` values, likewise.
          where: `[L]` bool, the positions already written.
          memory: one encoded request; all beams share its keys and values without copies.

        Returns:
          `[S, D]`.
        """
        return self.decoder[block].step(x, keys, values, where, memory.poi[block], memory.where)

    def poi_logits(self, states: jax.Array, layer: chex.Numeric) -> jax.Array:
        """Logits `[..., W]` of the code of layer `layer`, from states `[..., D]`."""
        return self.poi.layer_logits(states, layer)

    def creative_slots(
        self,
        memory: Memory,
        states: jax.Array,
        poi_codes: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """States of the multi-token-prediction module, one per slot (16).

        Without `multi_token`, the module reads the POI codes but not the POI decoder's states, and
        its gradient does not reach encoder and POI decoder. Of the shared parameters, it then
        trains only the embeddings of layers and of creative codes.

        Args:
          memory: encoded requests.
          states: `[..., K, D]` POI decoder states that predict each slot's last code.
          poi_codes: `[..., K, C]` codes of the slots' POIs.
          deterministic: whether dropout is off.

        Returns:
          `[..., K, D]`; a slot attends to itself and the preceding slots, and to no creative.
        """
        items = self.poi.items(poi_codes)
        if self.config.multi_token:
            x = jnp.concatenate([self.state_norm(states), self.item_norm(items)], axis=-1)
        else:
            x = self.item_norm(lax.stop_gradient(items))
        x = self.creative_in(x)
        causal = jnp.tril(jnp.ones((x.shape[-2], x.shape[-2]), bool))
        return self.creative_block(
            x,
            causal,
            memory.creative[0],
            memory.where[..., None, None, :],
            deterministic=deterministic,
        )

    def creative_logits(self, slots: jax.Array, creative_codes: jax.Array) -> jax.Array:
        """Logits `[..., C, W]` of creative codes `[..., C]`, each given the preceding codes.

        The state of layer j is the slot's state `[..., D]` plus the embedding of layer j and the
        code embeddings of the layers before j, followed by an MLP with a residual connection.
        """
        layers = jnp.arange(self.config.num_layers)
        embedded = self.creative.codes(creative_codes, layers)
        before = jnp.cumsum(embedded, axis=-2) - embedded
        states = slots[..., None, :] + before + self.layer(layers)
        return self.creative.logits(states + self.creative_mlp(states))
