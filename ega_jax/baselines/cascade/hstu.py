"""HSTU as the cascade's ranker: the click and conversion probability of each candidate.

Hierarchical sequential transduction units (Zhai et al., "Actions Speak Louder than Words",
arXiv 2402.17152): attention without softmax, so that how much a user did of something is not
normalised away, gated by a projection of the input. The history is read once per request, causally;
every candidate is a target that comes after it, sees it and itself, and no other candidate (the
paper's sec. 3.3). Of what users did before the log keeps positive behaviours only, without their
times: an action is no token of its own, and the relative bias is one of position.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ega_jax.baselines.cascade.item_embedding import ItemEmbedding
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.generation.network import NetworkSettings
from ega_jax.generation.transformer import KeysValues, embedding, linear
from ega_jax.phases.logged import logged_phase, report
from ega_jax.reward.losses import feedback_loss
from ega_jax.reward.network import Items, Tower
from ega_jax.setting import setting
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.types import LossFn, Params, SessionSizes


@dataclasses.dataclass(frozen=True)
class HSTUSettings(NetworkSettings):
    """What the ranker itself reads of the group `cascade.hstu`; `hidden` is of its heads."""

    blocks: int = setting(1, at_least=1)
    dropout_rate: float = setting(0.2, at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class HSTUPhaseSettings(HSTUSettings, LoggedSettings):
    """The group `cascade.hstu`: the ranker and its training."""


@dataclasses.dataclass(frozen=True)
class HSTUConfig(HSTUSettings, SessionSizes):
    """Sizes of the ranker; letters are those of the legend in `types.py`."""


@struct.dataclass
class Ranking:
    """What the ranker expects of each candidate, 0 where there is none."""

    click: jax.Array  # [..., N] float32 probability of a click of the POI.
    convert: jax.Array  # [..., N] float32, given a click.
    state: jax.Array  # [..., N, D] the candidate in the user's eyes, wherever it stands.


class HSTULayer(nn.Module):
    """One unit: pointwise attention over what came before, gated, with a residual."""

    width: int
    num_heads: int
    reach: int  # T, the farthest that it looks back.
    dtype: str
    dropout_rate: float = 0.0

    def setup(self):
        """Declares the projections, and the bias of each distance for each head."""
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.mixed_norm = nn.LayerNorm(dtype=self.dtype)
        self.project = linear(4 * self.width, self.dtype)
        self.out = linear(self.width, self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.num_heads, self.reach + 1))
        self.dropout = nn.Dropout(self.dropout_rate)

    def __call__(
        self,
        x: jax.Array,
        past: KeysValues | None,
        distance: jax.Array,
        where: jax.Array,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KeysValues]:
        """Attends from each position to itself and to what came before it (1)-(3).

        Args:
          x: `[..., Q, D]`.
          past: what came before, `[..., L, H, D / H]`; None: the positions `x` themselves.
          distance: `[Q, L]` int32 from each position back to those before it, at most `reach`.
          where: `[..., Q, L]` bool, which of them it sees; itself it always sees.
          deterministic: whether dropout is off.

        Returns:
          The new `x`, and the keys and values of its positions.
        """
        heads = (*x.shape[:-1], self.num_heads, self.width // self.num_heads)
        u, v, q, k = jnp.split(nn.silu(self.project(self.norm(x))), 4, axis=-1)
        q, own = q.reshape(heads), KeysValues(k.reshape(heads), v.reshape(heads))
        past = own if past is None else past
        scores = jnp.einsum("...qhd,...khd->...hqk", q, past.keys) + self.bias[:, distance]
        weight = nn.silu(scores) * where[..., None, :, :]
        itself = nn.silu(jnp.sum(q * own.keys, axis=-1) + self.bias[:, 0])[..., None]
        mixed = jnp.einsum("...hqk,...khd->...qhd", weight, past.values) + itself * own.values
        mixed = self.mixed_norm((mixed / self.reach).reshape(x.shape)) * u
        return x + self.dropout(self.out(mixed), deterministic=deterministic), own


class HSTU(nn.Module):
    """Reads a history once, and judges any number of candidates by it."""

    config: HSTUConfig

    def setup(self):
        """Declares embeddings, layers and heads."""
        c = self.config
        embed = lambda number: embedding(number, c.width, c.dtype)
        self.item = ItemEmbedding(c.num_codes, c.num_layers, c.width, c.dtype)
        self.slot, self.ad = embed(c.num_slots), embed(2)
        self.layers = [
            HSTULayer(c.width, c.num_heads, c.history_length, c.dtype, c.dropout_rate)
            for _ in range(c.blocks)
        ]
        self.norm = nn.LayerNorm(dtype=c.dtype)
        self.dropout = nn.Dropout(c.dropout_rate)
        self.click, self.convert = Tower(c.hidden, c.dtype), Tower(c.hidden, c.dtype)

    def encode(
        self, items: Items, poi: jax.Array, creative: jax.Array, *, deterministic: bool = True
    ) -> tuple[KeysValues, ...]:
        """What each layer's candidates read of histories `[..., T]`."""
        x = self.item.poi(items, poi) + self.item.creative(items, creative)
        x = self.dropout(x, deterministic=deterministic)
        place = jnp.arange(poi.shape[-1])
        distance = place[:, None] - place
        seen = (poi >= 0)[..., None, :] & (distance > 0)
        memory = []
        for layer in self.layers:
            x, past = layer(x, None, jnp.maximum(distance, 0), seen, deterministic=deterministic)
            memory.append(past)
        return tuple(memory)

    def __call__(
        self,
        items: Items,
        memory: tuple[KeysValues, ...],
        past: jax.Array,
        poi: jax.Array,
        creative: jax.Array,
        is_ad: jax.Array,
        slot: jax.Array,
        *,
        deterministic: bool = True,
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Log-odds `[..., N]` by response, and states `[..., N, D]`, of candidates `[..., N]`.

        `memory` is what `encode` made of histories whose POIs `past [..., T]` were. A slot decides
        who looks at all, so it joins the state in the click's head alone.
        """
        x = self.item.poi(items, poi) + self.item.creative(items, creative)
        x = x + self.ad(is_ad.astype(jnp.int32))
        x = self.dropout(x, deterministic=deterministic)
        length, number = past.shape[-1], poi.shape[-1]
        distance = jnp.broadcast_to(length - jnp.arange(length), (number, length))
        seen = jnp.broadcast_to((past >= 0)[..., None, :], (*poi.shape, length))
        for layer, before in zip(self.layers, memory, strict=True):
            x, _ = layer(x, before, distance, seen, deterministic=deterministic)
        state = self.norm(x)
        seen_at = jnp.concatenate([state, self.slot(slot)], axis=-1)
        return {"click_poi": self.click(seen_at), "convert": self.convert(state)}, state


def init(key: chex.PRNGKey, config: HSTUConfig, items: Items) -> Params:
    """Fresh parameters of a ranker; pure, so that `eval_shape` gives the shapes alone."""
    past = jnp.zeros((1, config.history_length), jnp.int32)
    one = jnp.zeros((1, 1), jnp.int32)

    def whole(model: HSTU):
        return model(items, model.encode(items, past, past), past, one, one, one > 0, one)

    return nn.init(whole, HSTU(config))(key)["params"]


def rank(
    params: Params,
    config: HSTUConfig,
    items: Items,
    history_poi: jax.Array,
    history_creative: jax.Array,
    candidates: jax.Array,
    creatives: jax.Array,
    is_ad: jax.Array,
    slot: jax.Array,
) -> Ranking:
    """Predicts clicks and conversions of candidates, each for itself.

    Args:
      params: of the ranker.
      config: its sizes.
      items: what it sees of the items.
      history_poi: `[..., T]` int32, most recent last, -1 where none.
      history_creative: `[..., T]` int32, likewise.
      candidates: `[..., N]` int32 POIs, -1 where none.
      creatives: `[..., N]` int32 that they would be shown with, -1 where none.
      is_ad: `[..., N]` bool.
      slot: `[..., N]` int32 where they were shown; the first, 0, to compare candidates by.

    Returns:
      The ranking.
    """
    chex.assert_equal_shape([candidates, creatives, is_ad, slot])

    def judge(model: HSTU):
        memory = model.encode(items, history_poi, history_creative)
        return model(items, memory, history_poi, candidates, creatives, is_ad, slot)

    found: Any = HSTU(config).apply({"params": params}, method=judge)
    logits, state = found
    chance = lambda logit: jnp.where(candidates >= 0, jax.nn.sigmoid(logit), 0.0)
    return Ranking(chance(logits["click_poi"]), chance(logits["convert"]), state)


def shown_in(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """The slates of a batch as candidates: POIs, creatives, ad flags and slots, all `[B, K]`."""
    poi = batch["shown_poi"]
    slot = jnp.broadcast_to(jnp.arange(poi.shape[-1]), poi.shape)
    return poi, batch["shown_creative"], batch["shown_is_ad"], slot


def hstu_loss(config: HSTUConfig, items: Items) -> LossFn:
    """The loss of the ranker, in the form that the training loop takes.

    Args:
      config: sizes of the ranker.
      items: what it sees of the items.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`, where `batch` holds
      the fields of ad logs: cross-entropy of clicks and conversions of the shown items.
    """

    def loss(params: Params, variables, batch: dict[str, jax.Array], key: chex.PRNGKey):
        def forward(model: HSTU):
            past = batch["history_poi"], batch["history_creative"]
            memory = model.encode(items, *past, deterministic=False)
            return model(items, memory, past[0], *shown_in(batch), deterministic=False)

        logits, _ = HSTU(config).apply({"params": params}, method=forward, rngs={"dropout": key})
        value, metrics = feedback_loss(logits, batch)
        return value, (metrics, variables)

    return loss


def hstu_phase(
    dataset: AdLogDataset,
    items: Items,
    config: HSTUConfig,
    settings: LoggedSettings,
    seed: int,
) -> Phase:
    """The phase "hstu": trained on logged feedback of "pretrain", measured on "align".

    Args:
      dataset: an ad log.
      items: what the ranker sees of its items.
      config: its sizes.
      settings: of the training; see `logged.logged_phase`.
      seed: of parameters, order of the sessions and dropout.
    """

    @jax.jit
    def predict(params: Params, batch):
        history = batch["history_poi"], batch["history_creative"]
        ranking = rank(params, config, items, *history, *shown_in(batch))
        return {"click_poi": ranking.click, "convert": ranking.convert}

    return logged_phase(
        "hstu",
        dataset,
        settings,
        seed,
        history_length=config.history_length,
        init=lambda key: init(key, config, items),
        loss=hstu_loss(config, items),
        evaluate=lambda params, batches: report(predict, params, batches),
    )
