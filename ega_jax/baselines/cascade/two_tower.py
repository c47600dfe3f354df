"""The pre-ranker, a two-tower model: it scores many ads by one inner product each.

The user tower pools the history's items with learned weights by recency, and reads the context if
requests have one; the item tower reads a POI alone (Covington et al., "Deep Neural Networks for
YouTube Recommendations", RecSys 2016; Huang et al., "Learning Deep Structured Semantic Models",
CIKM 2013). The item tower's outputs do not depend on the request, so they are computed once for the
whole catalogue. In training, slot and ad flag add to the log-odds of a click; in serving, they are
the same for all ads and left out.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ega_jax.baselines.cascade.context_embedding import ContextEmbedding
from ega_jax.baselines.cascade.hstu import shown_in
from ega_jax.baselines.cascade.item_embedding import ItemEmbedding
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.generation.gradients import masked_softmax
from ega_jax.generation.transformer import linear
from ega_jax.phases.logged import logged_phase, report
from ega_jax.reward.losses import feedback_loss
from ega_jax.reward.network import Items
from ega_jax.setting import DTYPES, setting
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.types import LossFn, Params, SessionSizes


@dataclasses.dataclass(frozen=True)
class TwoTowerSettings:
    """The part of the group `cascade.two_tower` that the pre-ranker reads."""

    width: int = setting(32, at_least=1)  # Of embeddings and of the towers' outputs.
    hidden: int = setting(64, at_least=1)  # Width of the towers' hidden layers.
    dropout_rate: float = setting(0.2, at_least=0, below=1)
    dtype: str = setting("float32", choices=DTYPES)  # Computation dtype; parameters are float32.


@dataclasses.dataclass(frozen=True)
class TwoTowerPhaseSettings(TwoTowerSettings, LoggedSettings):
    """The group `cascade.two_tower`: the pre-ranker and its training."""


@dataclasses.dataclass(frozen=True)
class TwoTowerConfig(TwoTowerSettings, SessionSizes):
    """The pre-ranker's config; the legend of the letters is in `types.py`."""


@struct.dataclass
class PoiTable:
    """The item tower's outputs for all POIs of the catalogue."""

    vector: jax.Array  # [P, D]
    bias: jax.Array  # [P] float32.


class TwoTower(nn.Module):
    """The towers; every method takes any leading batch axes."""

    config: TwoTowerConfig

    def setup(self):
        """Declares embeddings, the weights of behaviours by recency, and both towers."""
        c = self.config
        tower = lambda: nn.Sequential(
            [linear(c.hidden, c.dtype), nn.relu, linear(c.width, c.dtype)]
        )
        self.item = ItemEmbedding(c.num_codes, c.num_layers, c.width, c.dtype)
        if c.context.width:
            self.context = ContextEmbedding(c.context, c.width, c.dtype)
        self.recency = self.param("recency", nn.initializers.zeros, (c.history_length,))
        self.user_tower, self.item_tower = tower(), tower()
        self.popularity = linear(1, c.dtype)
        self.slot = self.param("slot", nn.initializers.constant(-2.0), (c.num_slots,))
        self.ad = self.param("ad", nn.initializers.zeros, (2,))
        self.dropout = nn.Dropout(c.dropout_rate)

    def user(
        self,
        items: Items,
        poi: jax.Array,
        creative: jax.Array,
        context: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """The user's vector `[..., D]`, from a history `[..., T]` and a context `[..., X]`."""
        x = self.item.poi(items, poi) + self.item.creative(items, creative)
        x = self.dropout(x, deterministic=deterministic)
        weight = masked_softmax(self.recency[-poi.shape[-1] :], poi >= 0).astype(x.dtype)
        pooled = jnp.einsum("...t,...td->...d", weight, x)
        if self.config.context.width:
            pooled = jnp.concatenate([pooled, self.context(context)], axis=-1)
        return self.user_tower(pooled)

    def pois(
        self, items: Items, poi: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Vectors `[..., D]` and biases `[...]` of POIs `[...]`."""
        x = self.dropout(self.item.poi(items, poi), deterministic=deterministic)
        return self.item_tower(x), self.popularity(x)[..., 0]

    def __call__(
        self,
        items: Items,
        past_poi: jax.Array,
        past_creative: jax.Array,
        poi: jax.Array,
        is_ad: jax.Array,
        slot: jax.Array,
        context: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Log-odds `[..., N]` of clicks of POIs `[..., N]` that are shown in slots `[..., N]`."""
        user = self.user(items, past_poi, past_creative, context, deterministic=deterministic)
        vector, bias = self.pois(items, poi, deterministic=deterministic)
        shown = self.slot[slot] + self.ad[is_ad.astype(jnp.int32)]
        return matched(user, vector, bias) + shown


def matched(user: jax.Array, vector: jax.Array, bias: jax.Array) -> jax.Array:
    """Scores `[..., N]` of items, from the user's vector `[..., D]` and those of the items."""
    inner = jnp.einsum("...d,...nd->...n", user, vector) * user.shape[-1] ** -0.5
    return (inner + bias).astype(jnp.float32)


def init(key: chex.PRNGKey, config: TwoTowerConfig, items: Items) -> Params:
    """Returns initial parameters of a pre-ranker; pure, for `eval_shape`."""
    past, one = jnp.zeros((1, config.history_length), jnp.int32), jnp.zeros((1, 1), jnp.int32)
    context = jnp.zeros((1, config.context.width))
    return TwoTower(config).init(key, items, past, past, one, one > 0, one, context)["params"]


def poi_table(params: Params, config: TwoTowerConfig, items: Items) -> PoiTable:
    """Runs the item tower on the whole catalogue."""
    every = jnp.arange(items.poi_embedding.shape[0])
    found: Any = TwoTower(config).apply({"params": params}, items, every, method="pois")
    return PoiTable(vector=found[0], bias=found[1].astype(jnp.float32))


def scores(
    params: Params,
    config: TwoTowerConfig,
    items: Items,
    table: PoiTable,
    history_poi: jax.Array,
    history_creative: jax.Array,
    poi: jax.Array,
    context: jax.Array | None = None,
) -> jax.Array:
    """Scores POIs `[..., N]` for a user: log-odds of a click up to a constant.

    Args:
      params: the pre-ranker's parameters.
      config: the pre-ranker's config.
      items: the item features.
      table: the item tower's outputs, from `poi_table`.
      history_poi: `[..., T]` int32, most recent last, -1 where none.
      history_creative: `[..., T]` int32, likewise.
      poi: `[..., N]` int32; results of negative ids have no meaning.
      context: `[..., X]` contexts as logged; `None` if requests have none.

    Returns:
      `[..., N]` float32.
    """
    request = history_poi, history_creative, context
    user: Any = TwoTower(config).apply({"params": params}, items, *request, method="user")
    return matched(user, table.vector[poi], table.bias[poi])


def two_tower_loss(config: TwoTowerConfig, items: Items) -> LossFn:
    """Returns the loss of the pre-ranker, as `make_train_step` takes it.

    Args:
      config: the pre-ranker's config.
      items: the item features.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`: the cross-entropy of
      clicks of the shown POIs; `batch` holds the fields of ad logs.
    """

    def loss(params: Params, variables, batch: dict[str, jax.Array], key: chex.PRNGKey):
        logit = _logits(params, config, items, batch, deterministic=False, rngs={"dropout": key})
        value, metrics = feedback_loss({"click_poi": logit}, batch)
        return value, (metrics, variables)

    return loss


def _logits(params: Params, config: TwoTowerConfig, items: Items, batch, rngs=None, **how: bool):
    """Log-odds `[B, K]` of clicks in the slates of a batch."""
    poi, _, is_ad, slot = shown_in(batch)
    history = batch["history_poi"], batch["history_creative"]
    shown = *history, poi, is_ad, slot, batch.get("context")
    model: Any = TwoTower(config)
    return model.apply({"params": params}, items, *shown, rngs=rngs, **how)


def two_tower_phase(
    dataset: AdLogDataset,
    items: Items,
    config: TwoTowerConfig,
    settings: LoggedSettings,
    seed: int,
) -> Phase:
    """Returns the phase "two_tower": it trains on feedback of "pretrain", evaluates on "align".

    Args:
      dataset: an ad log.
      items: the item features.
      config: the pre-ranker's config.
      settings: the training settings; see `logged.logged_phase`.
      seed: seeds the parameters, the order of the sessions and dropout.
    """

    @jax.jit
    def predict(params: Params, batch):
        return {"click_poi": jax.nn.sigmoid(_logits(params, config, items, batch))}

    return logged_phase(
        "two_tower",
        dataset,
        settings,
        seed,
        history_length=config.history_length,
        init=lambda key: init(key, config, items),
        loss=two_tower_loss(config, items),
        evaluate=lambda params, batches: report(predict, params, batches),
    )
