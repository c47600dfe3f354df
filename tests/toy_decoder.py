"""A decoder that is not the project's generator: its states are sums, so that oracles are short."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.generation.transformer import KeysValues


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What loops and caches depend on."""

    num_slots: int
    num_layers: int
    width: int
    num_heads: int = 2
    decoder_blocks: int = 1
    dtype: str = "float32"


@struct.dataclass
class Summing:
    """A state is the sum of the history and of all inputs so far; logits are read off it."""

    table: jax.Array  # [C, W, D] inputs of codes.
    place: jax.Array  # [K * C, D]
    head: jax.Array  # [C, D, W]
    config: Sizes = struct.field(pytree_node=False)

    def encode(self, history_poi, history_creative, catalogue, context=None):
        seen = self.table[0, catalogue.poi_codes[history_poi, 0]]
        return jnp.where(history_poi[..., None] >= 0, seen, 0.0).sum(-2)

    def positions(self, slots):
        return self.place[: slots * self.config.num_layers]

    def begin_input(self):
        return jnp.ones(self.config.width)

    def code_input(self, codes, layer):
        return self.table[layer, codes]

    def block_keys_values(self, block, x):
        heads = x.reshape(-1, 2, self.config.width // 2)
        return KeysValues(heads, 3 * heads)

    def block_step(self, block, x, keys, values, where, memory):
        """Keys are the inputs and values three times these: a quarter of both is their sum."""
        inputs = jnp.moveaxis(keys, -1, 1) + values
        past = jnp.where(where[:, None, None], inputs, 0.0).sum(1) / 4
        return past.reshape(x.shape) + memory

    def poi_logits(self, states, layer):
        return states @ self.head[layer]

    def poi_states(self, memory, poi_codes):
        slots, layers = poi_codes.shape[-2:]
        x = self.table[jnp.arange(layers), poi_codes]
        x = x.reshape(*poi_codes.shape[:-2], slots * layers, -1)
        x = jnp.concatenate([jnp.ones_like(x[..., :1, :]), x[..., :-1, :]], axis=-2)
        states = jnp.cumsum(x + self.positions(slots), axis=-2) + memory[..., None, :]
        return states.reshape(*poi_codes.shape, -1)

    def slate_logits(self, memory, poi_codes):
        return jnp.einsum("...cd,cdw->...cw", self.poi_states(memory, poi_codes), self.head)

    def creative_slots(self, memory, states, poi_codes):
        return states + self.table[0, poi_codes[..., 0]]

    def creative_logits(self, slots, creative_codes):
        x = self.table[jnp.arange(self.config.num_layers), creative_codes]
        before = jnp.cumsum(x, axis=-2) - x
        return jnp.einsum("...cd,cdw->...cw", slots[..., None, :] + before, self.head)

    def trainable(self, part):
        return {"head": self.head}

    def with_parameters(self, params):
        return dataclasses.replace(self, **params)


def random_decoder(seed, num_slots, num_layers, num_codes, width=4, whole=False):
    """A decoder with random parameters; `whole`: logits are whole numbers, so sums are exact."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.integers(-1, 2, shape) if whole else rng.normal(size=shape)
    return Summing(
        table=jnp.asarray(draw(num_layers, num_codes, width), jnp.float32),
        place=jnp.asarray(draw(num_slots * num_layers, width), jnp.float32),
        head=jnp.asarray((1 if whole else 0.5) * draw(num_layers, width, num_codes), jnp.float32),
        config=Sizes(num_slots, num_layers, width),
    )
