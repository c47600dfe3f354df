"""Peri-CR, the cascade's creative selection, which runs in parallel to the ranking of ads.

Yang et al., "Parallel Ranking of Ads and Creatives in Real-Time Advertising Systems" (AAAI 2024,
arXiv 2312.12750). Online, creatives and ads are ranked in parallel; offline, one joint model of ad
and creative is trained. Here a click's log-odds are the ad tower's output for the POI plus a
multiple of the creative's score; POI clicks and image clicks have one multiple each. Both towers
read the same embedded history, each with its own attention. If requests have a context, it is one
more position of the history.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from ega_jax.baselines.cascade.context_embedding import ContextEmbedding, appended
from ega_jax.baselines.cascade.item_embedding import ItemEmbedding
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.generation.network import NetworkSettings
from ega_jax.generation.transformer import Attention, embedding
from ega_jax.phases.logged import logged_phase, report
from ega_jax.reward.losses import feedback_loss
from ega_jax.reward.network import Items, Tower
from ega_jax.setting import setting
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.types import IMPOSSIBLE, LossFn, Params, SessionSizes

RESPONSES = ("click_poi", "click_image")


@dataclasses.dataclass(frozen=True)
class PeriCRSettings(NetworkSettings):
    """The part of the group `cascade.peri_cr` that the model reads; `hidden`: its towers' width."""

    dropout_rate: float = setting(0.2, at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class PeriCRPhaseSettings(PeriCRSettings, LoggedSettings):
    """The group `cascade.peri_cr`: the joint model and its training."""


@dataclasses.dataclass(frozen=True)
class PeriCRConfig(PeriCRSettings, SessionSizes):
    """The joint model's config; the legend of the letters is in `types.py`."""


class Interest(nn.Module):
    """Target attention: concatenates an item, its attention over the past, and their product."""

    config: PeriCRConfig

    @nn.compact
    def __call__(self, x: jax.Array, past: jax.Array, where: jax.Array) -> jax.Array:
        """Maps items `[..., N, D]` and a past `[..., T, D]`, masked by `where`: `[..., N, 3 D]`."""
        c = self.config
        attention = Attention(c.width, c.num_heads, c.dtype)
        read = attention(x, attention.keys_values(past), where[..., None, None, :])
        return jnp.concatenate([x, read, x * read], axis=-1)


class PeriCR(nn.Module):
    """The joint model of ads and creatives."""

    config: PeriCRConfig

    def setup(self):
        """Declares the shared embeddings and the towers."""
        c = self.config
        embed = lambda number: embedding(number, c.width, c.dtype)
        self.item = ItemEmbedding(c.num_codes, c.num_layers, c.width, c.dtype)
        self.recency, self.slot, self.ad = embed(c.history_length), embed(c.num_slots), embed(2)
        if c.context.width:
            self.context = ContextEmbedding(c.context, c.width, c.dtype)
        self.interest, self.taste = Interest(c), Interest(c)
        self.dropout = nn.Dropout(c.dropout_rate)
        self.ad_towers = [Tower(c.hidden, c.dtype) for _ in RESPONSES]
        self.creative_tower = Tower(c.hidden, c.dtype)
        self.scale = self.param("scale", nn.initializers.ones, (len(RESPONSES),))

    def past(
        self,
        items: Items,
        poi: jax.Array,
        creative: jax.Array,
        context: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Embeds behaviours `[..., T]` and contexts `[..., X]` for both towers.

        Returns:
          Positions `[..., L, D]` and their mask `[..., L]`: the behaviours, and the context if
          there is one.
        """
        recency = self.recency(jnp.arange(poi.shape[-1])[::-1])
        x = self.item.poi(items, poi) + self.item.creative(items, creative) + recency
        if self.config.context.width:
            return appended(x, poi >= 0, self.context(context))
        return x, poi >= 0

    def score(
        self,
        items: Items,
        past: jax.Array,
        where: jax.Array,
        poi: jax.Array,
        creative: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Scores creatives `[..., N]` of POIs `[..., N]`; a multiple is added to the log-odds."""
        taste = self.taste(self.item.creative(items, creative), past, where)
        x = jnp.concatenate([taste, self.item.poi(items, poi)], axis=-1)
        return self.creative_tower(self.dropout(x, deterministic=deterministic))

    def __call__(
        self,
        items: Items,
        history_poi: jax.Array,
        history_creative: jax.Array,
        poi: jax.Array,
        creative: jax.Array,
        is_ad: jax.Array,
        context: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> dict[str, jax.Array]:
        """Returns log-odds `[..., K]` of responses to each item of a slate, ignoring the others."""
        past, where = self.past(items, history_poi, history_creative, context)
        added = self.score(items, past, where, poi, creative, deterministic=deterministic)
        x = self.interest(self.item.poi(items, poi), past, where)
        shown = self.ad(is_ad.astype(jnp.int32)) + self.slot(jnp.arange(poi.shape[-1]))
        x = jnp.concatenate([x, shown], axis=-1)
        x = self.dropout(x, deterministic=deterministic)
        return {
            name: tower(x) + scale * added
            for name, tower, scale in zip(RESPONSES, self.ad_towers, self.scale, strict=True)
        }


def init(key: chex.PRNGKey, config: PeriCRConfig, items: Items) -> Params:
    """Returns initial parameters of the joint model; pure, for `eval_shape`."""
    past = jnp.zeros((1, config.history_length), jnp.int32)
    slots = jnp.zeros((1, config.num_slots), jnp.int32)
    context = jnp.zeros((1, config.context.width))
    whole = lambda model: model(items, past, past, slots, slots, slots > 0, context)
    return nn.init(whole, PeriCR(config))(key)["params"]


def score(
    params: Params,
    config: PeriCRConfig,
    items: Items,
    history_poi: jax.Array,
    history_creative: jax.Array,
    pois: jax.Array,
    creatives: jax.Array,
    context: jax.Array | None = None,
) -> jax.Array:
    """Scores creatives by their effect on the log-odds of a click.

    Args:
      params: the joint model's parameters.
      config: the joint model's config.
      items: the item features.
      history_poi: `[..., T]` int32, most recent last, -1 where none.
      history_creative: `[..., T]` int32, likewise.
      pois: `[..., N]` int32, -1 where none.
      creatives: `[..., N, M]` int32 creatives of each POI, -1 where none.
      context: `[..., X]` contexts as logged; `None` if requests have none.

    Returns:
      `[..., N, M]` float32, -1e30 where there is no creative.
    """
    flat = (*pois.shape[:-1], -1)
    owner = jnp.broadcast_to(pois[..., None], creatives.shape)

    def judge(model: PeriCR):
        past, where = model.past(items, history_poi, history_creative, context)
        return model.score(items, past, where, owner.reshape(flat), creatives.reshape(flat))

    scores: Any = PeriCR(config).apply({"params": params}, method=judge)
    return jnp.where(creatives >= 0, scores.reshape(creatives.shape), IMPOSSIBLE)


def choose(
    params: Params,
    config: PeriCRConfig,
    items: Items,
    history_poi: jax.Array,
    history_creative: jax.Array,
    pois: jax.Array,
    context: jax.Array | None = None,
) -> jax.Array:
    """Returns the best creative of each POI `[..., N]`: `[..., N]` int32, -1 where none.

    See `score` for the arguments.
    """
    owned = jnp.where(pois[..., None] >= 0, items.catalogue.poi_creatives[jnp.maximum(pois, 0)], -1)
    history = history_poi, history_creative
    scores = score(params, config, items, *history, pois, owned, context)
    best = jnp.argmax(scores, axis=-1)[..., None]
    return jnp.take_along_axis(owned, best, axis=-1)[..., 0]


def slates_of(batch: Mapping[str, jax.Array]) -> tuple[jax.Array | None, ...]:
    """Returns the histories, slates and contexts of a batch, as the joint model takes them."""
    names = ("history_poi", "history_creative", "shown_poi", "shown_creative", "shown_is_ad")
    return *(batch[name] for name in names), batch.get("context")


def peri_cr_loss(config: PeriCRConfig, items: Items) -> LossFn:
    """Returns the joint loss, as `make_train_step` takes it.

    Args:
      config: the joint model's config.
      items: the item features.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`: the cross-entropy of
      clicks of the shown POIs and of their images; `batch` holds the fields of ad logs.
    """

    def loss(params: Params, variables, batch: dict[str, jax.Array], key: chex.PRNGKey):
        logits: Any = PeriCR(config).apply(
            {"params": params},
            items,
            *slates_of(batch),
            deterministic=False,
            rngs={"dropout": key},
        )
        value, metrics = feedback_loss(logits, batch)
        return value, (metrics, variables)

    return loss


def peri_cr_phase(
    dataset: AdLogDataset,
    items: Items,
    config: PeriCRConfig,
    settings: LoggedSettings,
    seed: int,
) -> Phase:
    """Returns the phase "peri_cr": it trains on feedback of "pretrain" and evaluates on "align".

    Args:
      dataset: an ad log.
      items: the item features.
      config: the joint model's config.
      settings: the training settings; see `logged.logged_phase`.
      seed: seeds the parameters, the order of the sessions and dropout.
    """

    @jax.jit
    def predict(params: Params, batch):
        logits = PeriCR(config).apply({"params": params}, items, *slates_of(batch))
        return jax.tree.map(jax.nn.sigmoid, logits)

    return logged_phase(
        "peri_cr",
        dataset,
        settings,
        seed,
        history_length=config.history_length,
        init=lambda key: init(key, config, items),
        loss=peri_cr_loss(config, items),
        evaluate=lambda params, batches: report(predict, params, batches),
    )
