"""The interface between generator and search, so that the generator can be replaced (sec. 4.1).

Both searches, the slate policy, the alignment and the choice of creatives take a `Decoder`. The
default implementation is `generator.GeneratorDecoder`. A decoder is a transformer over `K * C`
positions. Its past is one pair of keys and values per block and position; each search stores them
in its own layout.
"""

from typing import Any, Protocol, Self

import chex
import jax

from ega_jax.generation.transformer import KeysValues
from ega_jax.types import Catalogue, Params

PARTS = ("head_and_last_block", "all")  # The parameters that alignment trains.


class DecoderSizes(Protocol):
    """The static sizes that determine loops and caches."""

    @property
    def num_slots(self) -> int:
        """K, the maximum number of slots in a slate."""
        ...

    @property
    def num_layers(self) -> int:
        """C, the number of codes per item."""
        ...

    @property
    def width(self) -> int:
        """D, the width of the states."""
        ...

    @property
    def num_heads(self) -> int:
        """H, the number of attention heads per block."""
        ...

    @property
    def decoder_blocks(self) -> int:
        """The number of blocks; each has its own key/value cache."""
        ...

    @property
    def dtype(self) -> str:
        """The dtype of states, keys and values."""
        ...


class Decoder(Protocol):
    """A model of slates as code sequences: parameters and sizes in one pytree."""

    @property
    def config(self) -> DecoderSizes:
        """Static sizes."""
        ...

    def encode(
        self,
        history_poi: jax.Array,
        history_creative: jax.Array,
        catalogue: Catalogue,
        context: jax.Array | None = None,
    ) -> Any:
        """Encodes a request once, as `memory` for the methods below.

        Args:
          history_poi: `[..., T]` POI ids, most recent last, -1 padding.
          history_creative: `[..., T]` creative ids, likewise.
          catalogue: the items' codes.
          context: `[..., X]` contexts as logged; None if requests have none.
        """
        ...

    def positions(self, slots: int) -> jax.Array:
        """Position embeddings `[slots * C, D]`."""
        ...

    def begin_input(self) -> jax.Array:
        """Input `[D]` of the first position, before its position embedding."""
        ...

    def code_input(self, codes: jax.Array, layer: chex.Numeric) -> jax.Array:
        """Inputs `[..., D]` of the next position, given the codes `[...]` of layer `layer`."""
        ...

    def block_keys_values(self, block: int, x: jax.Array) -> KeysValues:
        """Keys and values of a block for new positions `x [S, D]`, each `[S, H, D / H]`."""
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
        """Logits `[..., W]` of the code of layer `layer`, from states `[..., D]`."""
        ...

    def poi_states(self, memory: Any, poi_codes: jax.Array) -> jax.Array:
        """Teacher-forced states `[..., K, C, D]` that predict each of the codes `[..., K, C]`."""
        ...

    def slate_logits(self, memory: Any, poi_codes: jax.Array) -> jax.Array:
        """Teacher-forced logits `[..., K, C, W]` of each code given the preceding codes."""
        ...

    def creative_slots(self, memory: Any, states: jax.Array, poi_codes: jax.Array) -> jax.Array:
        """States `[..., K, D]` from which creatives are predicted (16)."""
        ...

    def creative_logits(self, slots: jax.Array, creative_codes: jax.Array) -> jax.Array:
        """Logits `[..., C, W]` of creative codes `[..., C]`, each given the preceding codes."""
        ...

    def trainable(self, part: str) -> Params:
        """The parameters that alignment trains; `part` is one of `PARTS`."""
        ...

    def with_parameters(self, params: Params) -> Self:
        """A copy of the decoder with these parameters replaced; the other parameters stay."""
        ...
