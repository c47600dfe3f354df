"""The generator as pure functions and as a `Decoder` for the searches (sec. 4.1)."""

import dataclasses
import functools
from typing import Any, Self

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from ega_jax.generation.decoder import PARTS
from ega_jax.generation.network import Generator, GeneratorConfig, Memory
from ega_jax.generation.transformer import KeysValues
from ega_jax.types import Catalogue, Params

__all__ = [
    "Generator",
    "GeneratorConfig",
    "GeneratorDecoder",
    "Memory",
    "apply",
    "init",
]


def init(key: chex.PRNGKey, config: GeneratorConfig, catalogue: Catalogue) -> chex.ArrayTree:
    """Initial parameters of a generator; pure, so `jax.eval_shape` can compute their shapes."""
    ids = jnp.zeros((1, config.history_length), jnp.int32)
    codes = jnp.zeros((1, config.num_slots, config.num_layers), jnp.int32)
    context = jnp.zeros((1, config.context.width))

    def whole(model: Generator):
        return model(model.encode(ids, ids, catalogue, context), codes, codes)

    return nn.init(whole, Generator(config))(key)["params"]


def apply(params: Params, config: GeneratorConfig, function, **kwargs: Any) -> Any:
    """Calls `function(generator)` with bound parameters; `kwargs` go to Flax's `apply`."""
    return Generator(config).apply({"params": params}, method=function, **kwargs)


@struct.dataclass
class GeneratorDecoder:
    """The default `Decoder`: a generator's parameters and sizes."""

    params: Params
    config: GeneratorConfig = struct.field(pytree_node=False)

    @functools.cached_property
    def model(self) -> Generator:
        """The network with its parameters bound."""
        return Generator(self.config).bind({"params": self.params})

    def encode(
        self,
        history_poi: jax.Array,
        history_creative: jax.Array,
        catalogue: Catalogue,
        context: jax.Array | None = None,
    ) -> Memory:
        """Encodes histories `[..., T]` and contexts `[..., X]`; see `Generator.encode`."""
        return self.model.encode(history_poi, history_creative, catalogue, context)

    def positions(self, slots: int) -> jax.Array:
        """See `Generator.positions`."""
        return self.model.positions(slots)

    def begin_input(self) -> jax.Array:
        """See `Generator.begin_input`."""
        return self.model.begin_input()

    def code_input(self, codes: jax.Array, layer: chex.Numeric) -> jax.Array:
        """See `Generator.code_input`."""
        return self.model.code_input(codes, layer)

    def block_keys_values(self, block: int, x: jax.Array) -> KeysValues:
        """See `Generator.block_keys_values`."""
        return self.model.block_keys_values(block, x)

    def block_step(
        self,
        block: int,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        where: jax.Array,
        memory: Memory,
    ) -> jax.Array:
        """See `Generator.block_step`."""
        return self.model.block_step(block, x, keys, values, where, memory)

    def poi_logits(self, states: jax.Array, layer: chex.Numeric) -> jax.Array:
        """See `Generator.poi_logits`."""
        return self.model.poi_logits(states, layer)

    def poi_states(self, memory: Memory, poi_codes: jax.Array) -> jax.Array:
        """See `Generator.poi_states`."""
        return self.model.poi_states(memory, poi_codes)

    def slate_logits(self, memory: Memory, poi_codes: jax.Array) -> jax.Array:
        """Teacher-forced logits `[..., K, C, W]` of the slates' codes `[..., K, C]` (15)."""
        return self.model.poi.logits(self.model.poi_states(memory, poi_codes))

    def creative_slots(self, memory: Memory, states: jax.Array, poi_codes: jax.Array) -> jax.Array:
        """See `Generator.creative_slots`."""
        return self.model.creative_slots(memory, states, poi_codes)

    def creative_logits(self, slots: jax.Array, creative_codes: jax.Array) -> jax.Array:
        """See `Generator.creative_logits`."""
        return self.model.creative_logits(slots, creative_codes)

    def trainable(self, part: str) -> Params:
        """The parameters that alignment trains.

        Args:
          part: one of `PARTS`; "head_and_last_block" selects the POI output heads, the norm before
            them, and the last block of the POI decoder.

        Raises:
          ValueError: `part` is not one of `PARTS`.
        """
        if part not in PARTS:
            raise ValueError(f"part {part!r} is not one of {', '.join(PARTS)}")
        last_block = f"decoder_{self.config.decoder_blocks - 1}"
        heads = (("poi", "head"), ("poi", "norm"))
        trained = {
            path: leaf
            for path, leaf in flatten_dict(self.params).items()
            if part == "all" or path[0] == last_block or path[:2] in heads
        }
        return unflatten_dict(trained)

    def with_parameters(self, params: Params) -> Self:
        """A copy of the decoder with these parameters replaced; the other parameters stay."""
        joined = {**flatten_dict(self.params), **flatten_dict(params)}
        return dataclasses.replace(self, params=unflatten_dict(joined))
