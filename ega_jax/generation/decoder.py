"""What the searches ask of a generator, so that another one can take its place (paper sec. 4.1).

Both searches, the slate policy, the alignment and the choice of creatives take a `Decoder`. The
project's own is `generator.GeneratorDecoder`. A decoder is a transformer over `K * C` positions:
its past is one pair of keys and values per block and position, which each search stores in its own
layout.
"""

from typing import Any, Protocol, Self

import chex
import jax

from ega_jax.generation.transformer import KeysValues
from ega_jax.types import Catalogue, Params

PARTS = ("head_and_last_block", "all")  # What an alignment may train.


class DecoderSizes(Protocol):
    """The static sizes that loops and caches depend on."""

    @property
    def num_slots(self) -> int:
        """K, the most slots of a slate."""
        ...

    @property
    def num_layers(self) -> int:
        """C, codes of an item."""
        ...

    @property
    def width(self) -> int:
        """D, of the states."""
        ...

    @property
    def num_heads(self) -> int:
        """H, attention heads of a block."""
        ...

    @property
    def decoder_blocks(self) -> int:
        """Blocks, each with a past of its own."""
        ...

    @property
    def dtype(self) -> str:
        """Of the states and of the past."""
        ...


class Decoder(Protocol):
    """A model of slates as codes: parameters and sizes in one pytree."""

    @property
    def config(self) -> DecoderSizes:
        """Static sizes."""
        ...

    def encode(
        self, history_poi: jax.Array, history_creative: jax.Array, catalogue: Catalogue
    ) -> Any:
        """Encodes histories `[..., T]`, once per request; the result goes in as `memory` below."""
        ...

    def positions(self, slots: int) -> jax.Array:
        """Position embeddings `[slots * C, D]`."""
        ...

    def begin_input(self) -> jax.Array:
        """Input `[D]` of the first position, before its position embedding."""
        ...

    def code_input(self, codes: jax.Array, layer: chex.Numeric) -> jax.Array:
        """Inputs `[..., D]` that codes `[...]` of one layer give the next position."""
        ...

    def block_keys_values(self, block: int, x: jax.Array) -> KeysValues:
        """What positions `x [S, D]` add to the past of a block, each `[S, H, D / H]`."""
        ...

    def block_step(
        self,
        block: int,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        where: jax.Array,
        memory: Any,
    ) -> jax.Array:
        """One block at one position of each beam; see `network.Generator.block_step`."""
        ...

    def poi_logits(self, states: jax.Array, layer: chex.Numeric) -> jax.Array:
        """Logits `[..., W]` of a layer's code from states `[..., D]`."""
        ...

    def poi_states(self, memory: Any, poi_codes: jax.Array) -> jax.Array:
        """Teacher-forced states `[..., K, C, D]` where each code `[..., K, C]` is predicted."""
        ...

    def slate_logits(self, memory: Any, poi_codes: jax.Array) -> jax.Array:
        """Teacher-forced logits `[..., K, C, W]` of every code given the codes before it."""
        ...

    def creative_slots(self, memory: Any, states: jax.Array, poi_codes: jax.Array) -> jax.Array:
        """States `[..., K, D]` that creatives are predicted from (16)."""
        ...

    def creative_logits(self, slots: jax.Array, creative_codes: jax.Array) -> jax.Array:
        """Logits `[..., C, W]` of creatives' codes `[..., C]`, each given the codes before it."""
        ...

    def trainable(self, part: str) -> Params:
        """The parameters that an alignment of this part trains, one of `PARTS`."""
        ...

    def with_parameters(self, params: Params) -> Self:
        """The same decoder with these parameters instead of its own; the others stay."""
        ...
