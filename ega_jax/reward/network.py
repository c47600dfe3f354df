"""The network of the reward model: the user's response to a slate, slot by slot (paper sec. 4.2).

The input of a slot (18) consists of its item's tokens, the raw embeddings of POI and creative, the
slot's position, the ad flag, and the item's similarity to the history, to the request's organic
items and to the items above and below it. If the log has a context, it is added to the input, as
well as the item's similarity to it. Slots then attend to each other (19). Three towers read
each slot's state and the slate's mean state: POI click, image click, conversion.

Choice: the inputs include the history, without which predictions would not be personal, and the
organic items of the request, which were ranked for the user's current intent. Without them, the
model would infer this intent from the slate itself and treat a similar neighbour as a positive
signal, although it costs clicks. Ads and bids of the request are no input: a book has too many.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ega_jax.generation.codes import codes_of, sum_of_codes
from ega_jax.generation.gradients import masked_softmax
from ega_jax.generation.network import NetworkSettings
from ega_jax.generation.transformer import Block, embedding, linear, row_wise_dot
from ega_jax.reward.likeness import Likeness
from ega_jax.setting import setting
from ega_jax.types import Catalogue, SessionSizes


@dataclasses.dataclass(frozen=True)
class RewardSettings(NetworkSettings):
    """The settings of the group `reward` that define the network."""

    blocks: int = setting(1, at_least=1)
    permutation_aware: bool = setting(True)  # False: a slot sees no other slot; pointwise control.
    dropout_rate: float = setting(0.0, at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class RewardConfig(RewardSettings, SessionSizes):
    """Sizes of the reward model; for the letters see the legend in `types.py`."""


@struct.dataclass
class Items:
    """The item features that the model reads."""

    catalogue: Catalogue
    poi_embedding: jax.Array  # [P, E] float32, standardised.
    creative_embedding: jax.Array  # [R, E'] float32, standardised.

    def poi(self, ids: jax.Array) -> jax.Array:
        """Raw embeddings `[..., E]` of POIs; undefined for ids below 0."""
        return self.poi_embedding[jnp.maximum(ids, 0)]

    def creative(self, ids: jax.Array) -> jax.Array:
        """Raw embeddings `[..., E']` of creatives; 0, their mean, for ids below 0."""
        return self.creative_embedding[jnp.maximum(ids, 0)] * (ids >= 0)[..., None]


@struct.dataclass
class Memory:
    """An encoded request: computed once and shared by all its slates without copies."""

    poi: jax.Array  # [..., T, H, D / H] projected POIs of the history; see `Likeness`.
    creative: jax.Array  # [..., T, H, D / H] projected creatives of the history.
    organic: jax.Array  # [..., N, H, D / H] projected organic items.
    poi_weight: jax.Array  # [..., H, 1, T] float32 weights of behaviours; sum to 1, or 0 if none.
    creative_weight: jax.Array  # [..., H, 1, T] float32, likewise.
    organic_weight: jax.Array  # [..., 1, 1, N] float32, likewise; equal for all organic items.
    context: jax.Array | None  # [..., D] projected context; None if the model reads none.
    place: jax.Array | None  # [..., 1, H, D / H] context in the space of `context_likeness`.


@struct.dataclass
class Logits:
    """Log-odds of the responses in each slot; undefined in empty slots."""

    click_poi: jax.Array  # [..., K] float32.
    click_image: jax.Array  # [..., K] float32.
    convert: jax.Array  # [..., K] float32, given a click on the POI.
    states: jax.Array  # [..., K, 2 D] each slot's state, concatenated with the slate's mean state.


class Tower(nn.Module):
    """Maps a slot's representation `[..., F]` to the log-odds `[...]` of a response.

    It is the sum of an MLP and a linear map, so that the MLP need not learn linear effects.
    """

    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        """Returns the sum of MLP, linear map and bias."""
        bent = linear(1, self.dtype)(nn.relu(linear(self.hidden, self.dtype)(states)))
        logit = (bent + linear(1, self.dtype)(states))[..., 0]
        return logit.astype(jnp.float32) + self.param("bias", nn.initializers.constant(-2.0), ())


class RewardModel(nn.Module):
    """Encodes a request once and predicts the responses to any number of its slates."""

    config: RewardConfig

    def setup(self):
        """Declares embeddings, similarities, blocks and towers."""
        c = self.config
        embed = lambda number: embedding(number, c.width, c.dtype)
        likeness = lambda: Likeness(c.width, c.num_heads, c.dtype)
        recency = lambda name: self.param(
            name, nn.initializers.zeros, (c.num_heads, 1, c.history_length)
        )
        self.table = self.param(
            "table",
            nn.initializers.normal(c.width**-0.5),
            (c.num_layers * c.num_codes, c.width),
        )
        self.slot, self.ad = embed(c.num_slots), embed(2)
        self.poi_likeness, self.creative_likeness = likeness(), likeness()
        self.poi_recency, self.creative_recency = (
            recency("poi_recency"),
            recency("creative_recency"),
        )
        self.inputs = linear(c.width, c.dtype)
        if c.context.width:
            self.context, self.place = (
                nn.Dense(c.width, dtype=c.dtype, dot_general=row_wise_dot) for _ in range(2)
            )
            self.context_likeness = likeness()
        self.above, self.below, self.beside = (linear(c.width, c.dtype) for _ in range(3))
        self.blocks = [
            Block(c.width, c.num_heads, c.hidden, c.dtype, dropout_rate=c.dropout_rate)
            for _ in range(c.blocks)
        ]
        self.dropout = nn.Dropout(c.dropout_rate)
        self.towers = [Tower(c.hidden, c.dtype) for _ in range(3)]

    def encode(
        self,
        items: Items,
        poi: jax.Array,
        creative: jax.Array,
        organic: jax.Array,
        context: jax.Array | None = None,
    ) -> Memory:
        """Encodes a request; see `model.encode`."""
        weigh = lambda recency, ids: masked_softmax(
            recency[..., -ids.shape[-1] :], (ids >= 0)[..., None, None, :]
        )
        return Memory(
            poi=self.poi_likeness.places(items.poi(poi)),
            creative=self.creative_likeness.places(items.creative(creative)),
            organic=self.poi_likeness.places(items.poi(organic)),
            poi_weight=weigh(self.poi_recency, poi),
            creative_weight=weigh(self.creative_recency, creative),
            organic_weight=weigh(jnp.zeros((1, 1, organic.shape[-1])), organic),
            **self._context(context),
        )

    def _context(self, context: jax.Array | None) -> dict[str, jax.Array | None]:
        """The fields of `Memory` that depend on contexts `[..., X]`."""
        c = self.config
        if not c.context.width:
            return {"context": None, "place": None}
        if context is None:
            raise ValueError(f"the model reads a context of {c.context.width} values")
        scaled = c.context.standardised(context)
        place = self.place(scaled).reshape(*scaled.shape[:-1], 1, c.num_heads, -1)
        return {"context": self.context(scaled), "place": place}

    def __call__(
        self,
        items: Items,
        memory: Memory,
        poi: jax.Array,
        creative: jax.Array,
        is_ad: jax.Array,
        *,
        deterministic: bool = True,
    ) -> Logits:
        """Predicts responses to slates, as log-odds; see `model.predict`."""
        sight = self._sight(poi >= 0)
        h = self._inputs(items, memory, poi, creative, is_ad, sight)
        h = self.dropout(h, deterministic=deterministic)
        for block in self.blocks:
            seen = sight[..., None, :, :]
            h = block(h, seen, deterministic=deterministic)
        states = jnp.concatenate([h, _mean_seen(h, sight)], axis=-1)
        click_poi, click_image, convert = (tower(states) for tower in self.towers)
        return Logits(click_poi, click_image, convert, states)

    def _sight(self, where: jax.Array) -> jax.Array:
        """The filled slots that each slot sees, `[..., K, K]` bool; only itself if pointwise."""
        slots = where.shape[-1]
        shape = (*where.shape, slots)
        seen = jnp.broadcast_to(where[..., None, :], shape)
        return seen if self.config.permutation_aware else seen & jnp.eye(slots, dtype=bool)

    def _inputs(self, items, memory, poi, creative, is_ad, sight):
        """The input of each slot, `[..., K, D]` (18)."""
        c = self.config
        x, y = items.poi(poi), items.creative(creative)
        here, shown = self.poi_likeness.places(x), self.creative_likeness.places(y)
        above, below, beside = _relations(sight)
        likenesses = [
            self.poi_likeness(here, memory.poi, memory.poi_weight),
            self.poi_likeness(here, memory.organic, memory.organic_weight),
            self.creative_likeness(shown, memory.creative, memory.creative_weight),
            self.poi_likeness(here, here, above[..., None, :, :]),
            self.poi_likeness(here, here, below[..., None, :, :]),
        ]
        if c.context.width:
            likenesses.append(
                self.context_likeness(self.context_likeness.places(x), memory.place, jnp.ones(()))
            )
        likenesses = [likeness.astype(c.dtype) for likeness in likenesses]
        codes = codes_of(items.catalogue.poi_codes, poi)
        tokens = sum_of_codes(self.table, codes).astype(c.dtype)
        h = self.inputs(jnp.concatenate([tokens, x, y, *likenesses], axis=-1))
        h = h + self.ad(is_ad.astype(jnp.int32))
        if c.context.width:
            h = h + memory.context[..., None, :]
        around = above @ self.above(h) + below @ self.below(h) + beside @ self.beside(h)
        return h + around + self.slot(jnp.arange(poi.shape[-1]))


def _relations(sight: jax.Array) -> list[jax.Array]:
    """Masks (0 or 1) of the visible slots that are above, below and adjacent to each slot."""
    slot = jnp.arange(sight.shape[-1])
    gap = slot[None, :] - slot[:, None]
    return [(sight & at).astype(jnp.float32) for at in (gap < 0, gap > 0, jnp.abs(gap) == 1)]


def _mean_seen(h: jax.Array, sight: jax.Array) -> jax.Array:
    """Mean of the states `h [..., K, D]` that each slot sees; 0 if it sees none."""
    weight = sight.astype(h.dtype)
    return weight @ h / jnp.maximum(weight.sum(-1, keepdims=True), 1)
