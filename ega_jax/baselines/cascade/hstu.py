"""HSTU, the cascade's ranker: click and conversion probabilities of each candidate.

Hierarchical sequential transduction units (Zhai et al., "Actions Speak Louder than Words",
arXiv 2402.17152): attention without normalisation, so that it keeps the number of similar items,
gated by a projection of the input. The history is encoded once per request, causally. Each
candidate comes after the history and attends to the history and itself, not to other candidates
(that paper's sec. 3.3). The log holds only positive behaviours, without times; so actions are not
tokens, and the relative bias depends on positions only. If requests have a context, it is the last
position of the history.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ega_jax.baselines.cascade.context_embedding import ContextEmbedding, appended
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
    """The part of the group `cascade.hstu` that the ranker reads; `hidden` is its heads' width."""

    blocks: int = setting(1, at_least=1)
    dropout_rate: float = setting(0.2, at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class HSTUPhaseSettings(HSTUSettings, LoggedSettings):
    """The group `cascade.hstu`: the ranker and its training."""


@dataclasses.dataclass(frozen=True)
class HSTUConfig(HSTUSettings, SessionSizes):
    """The ranker's config; the legend of the letters is in `types.py`."""


@struct.dataclass
class Ranking:
    """The ranker's predictions for each candidate; probabilities are 0 where there is none."""

    click: jax.Array  # [..., N] float32 probability of a click of the POI.
    convert: jax.Array  # [..., N] float32, given a click.
    state: jax.Array  # [..., N, D] user-dependent state of the candidate, whatever its slot.


@struct.dataclass
class Past:
    """An encoded history of `L` positions: `T` behaviours, and the context if there is one."""

    layers: tuple[KeysValues, ...]  # Keys and values by layer, each [..., L, H, D / H].
    where: jax.Array  # [..., L] bool, False at padding.


class HSTULayer(nn.Module):
    """One HSTU layer: gated causal attention without normalisation, with a residual."""

    width: int
    num_heads: int
    reach: int  # L, the largest distance of attention.
    dtype: str
    dropout_rate: float = 0.0

    def setup(self):
        """Declares the projections and the bias per head and distance."""
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
        """Attends from each position to itself and to earlier positions, (1)-(3) of that paper.

        Args:
          x: `[..., Q, D]`.
          past: keys and values of earlier positions, `[..., L, H, D / H]`; `None`: those of `x`.
          distance: `[Q, L]` int32 from each position back to the earlier ones, at most `reach`.
          where: `[..., Q, L]` bool, which positions it attends to; itself is always included.
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
    """Encodes a history once and scores any number of candidates with it."""

    config: HSTUConfig

    def setup(self):
        """Declares embeddings, layers and heads."""
        c = self.config
        embed = lambda number: embedding(number, c.width, c.dtype)
        self.item = ItemEmbedding(c.num_codes, c.num_layers, c.width, c.dtype)
        self.slot, self.ad = embed(c.num_slots), embed(2)
        has_context = c.context.width > 0
        if has_context:
            self.context = ContextEmbedding(c.context, c.width, c.dtype)
        self.layers = [
            HSTULayer(c.width, c.num_heads, c.history_length + has_context, c.dtype, c.dropout_rate)
            for _ in range(c.blocks)
        ]
        self.norm = nn.LayerNorm(dtype=c.dtype)
        self.dropout = nn.Dropout(c.dropout_rate)
        self.click, self.convert = Tower(c.hidden, c.dtype), Tower(c.hidden, c.dtype)

    def encode(
        self,
        items: Items,
        poi: jax.Array,
        creative: jax.Array,
        context: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> Past:
        """Encodes histories `[..., T]` and contexts `[..., X]` for candidates."""
        x, where = self.item.poi(items, poi) + self.item.creative(items, creative), poi >= 0
        if self.config.context.width:
            x, where = appended(x, where, self.context(context))
        x = self.dropout(x, deterministic=deterministic)
        place = jnp.arange(x.shape[-2])
        distance = place[:, None] - place
        seen = where[..., None, :] & (distance > 0)
        layers = []
        for layer in self.layers:
            x, past = layer(x, None, jnp.maximum(distance, 0), seen, deterministic=deterministic)
            layers.append(past)
        return Past(tuple(layers), where)

    def __call__(
        self,
        items: Items,
        past: Past,
        poi: jax.Array,
        creative: jax.Array,
        is_ad: jax.Array,
        slot: jax.Array,
        *,
        deterministic: bool = True,
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Returns candidates' log-odds `[..., N]` by response, and states `[..., N, D]`.

        `past` is the result of `encode`. The slot affects examination, so only the click head reads
        it.
        """
        x = self.item.poi(items, poi) + self.item.creative(items, creative)
        x = x + self.ad(is_ad.astype(jnp.int32))
        x = self.dropout(x, deterministic=deterministic)
        length, number = past.where.shape[-1], poi.shape[-1]
        distance = jnp.broadcast_to(length - jnp.arange(length), (number, length))
        seen = jnp.broadcast_to(past.where[..., None, :], (*poi.shape, length))
        for layer, before in zip(self.layers, past.layers, strict=True):
            x, _ = layer(x, before, distance, seen, deterministic=deterministic)
        state = self.norm(x)
        seen_at = jnp.concatenate([state, self.slot(slot)], axis=-1)
        return {"click_poi": self.click(seen_at), "convert": self.convert(state)}, state


def init(key: chex.PRNGKey, config: HSTUConfig, items: Items) -> Params:
    """Returns initial parameters of a ranker; pure, for `eval_shape`."""
    past = jnp.zeros((1, config.history_length), jnp.int32)
    one, context = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, config.context.width))

    def whole(model: HSTU):
        return model(items, model.encode(items, past, past, context), one, one, one > 0, one)

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
    context: jax.Array | None = None,
) -> Ranking:
    """Predicts clicks and conversions of candidates, independently of each other.

    Args:
      params: the ranker's parameters.
      config: the ranker's config.
      items: the item features.
      history_poi: `[..., T]` int32, most recent last, -1 where none.
      history_creative: `[..., T]` int32, likewise.
      candidates: `[..., N]` int32 POIs, -1 where none.
      creatives: `[..., N]` int32 creatives of the candidates, -1 where none.
      is_ad: `[..., N]` bool.
      slot: `[..., N]` int32 slots of the candidates; use 0 for all to compare candidates.
      context: `[..., X]` contexts as logged; `None` if requests have none.

    Returns:
      The predictions.
    """
    chex.assert_equal_shape([candidates, creatives, is_ad, slot])

    def judge(model: HSTU):
        past = model.encode(items, history_poi, history_creative, context)
        return model(items, past, candidates, creatives, is_ad, slot)

    found: Any = HSTU(config).apply({"params": params}, method=judge)
    logits, state = found
    chance = lambda logit: jnp.where(candidates >= 0, jax.nn.sigmoid(logit), 0.0)
    return Ranking(chance(logits["click_poi"]), chance(logits["convert"]), state)


def shown_in(
    batch: Mapping[str, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns a batch's slates as candidates: POIs, creatives, ad flags and slots, all `[B, K]`."""
    poi = batch["shown_poi"]
    slot = jnp.broadcast_to(jnp.arange(poi.shape[-1]), poi.shape)
    return poi, batch["shown_creative"], batch["shown_is_ad"], slot


def hstu_loss(config: HSTUConfig, items: Items) -> LossFn:
    """Returns the loss of the ranker, as `make_train_step` takes it.

    Args:
      config: the ranker's config.
      items: the item features.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`: the cross-entropy of
      clicks and conversions of the shown items; `batch` holds the fields of ad logs.
    """

    def loss(params: Params, variables, batch: dict[str, jax.Array], key: chex.PRNGKey):
        def forward(model: HSTU):
            request = batch["history_poi"], batch["history_creative"], batch.get("context")
            past = model.encode(items, *request, deterministic=False)
            return model(items, past, *shown_in(batch), deterministic=False)

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
    """Returns the phase "hstu": it trains on feedback of "pretrain" and evaluates on "align".

    Args:
      dataset: an ad log.
      items: the item features.
      config: the ranker's config.
      settings: the training settings; see `logged.logged_phase`.
      seed: seeds the parameters, the order of the sessions and dropout.
    """

    @jax.jit
    def predict(params: Params, batch):
        history = batch["history_poi"], batch["history_creative"]
        ranking = rank(params, config, items, *history, *shown_in(batch), batch.get("context"))
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
