"""The reward model as pure functions: init, encode a request, predict its slates (sec. 4.2)."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ega_jax.reward.network import Items, Memory, RewardConfig, RewardModel
from ega_jax.types import Params

__all__ = ["Items", "Memory", "Predictions", "RewardConfig", "apply", "encode", "init", "predict"]


@struct.dataclass
class Predictions:
    """Probabilities of the responses in each slot, 0 where it is empty."""

    click_poi: jax.Array  # [..., K] float32.
    click_image: jax.Array  # [..., K] float32.
    convert: jax.Array  # [..., K] float32, given a click of the POI.
    states: jax.Array  # [..., K, 2 D] each slot's state beside the mean of the slate.


def init(key: chex.PRNGKey, config: RewardConfig, items: Items) -> Params:
    """Fresh parameters of a reward model; pure, so that `eval_shape` gives the shapes alone."""
    past = jnp.zeros((1, config.history_length), jnp.int32)
    slots = jnp.zeros((1, config.num_slots), jnp.int32)

    def whole(model: RewardModel):
        return model(items, model.encode(items, past, past, slots), slots, slots, slots > 0)

    return nn.init(whole, RewardModel(config))(key)["params"]


def apply(params: Params, config: RewardConfig, function, **kwargs: Any) -> Any:
    """Calls `function(network)` with the parameters bound; further arguments are Flax's."""
    return RewardModel(config).apply({"params": params}, method=function, **kwargs)


def encode(
    params: Params,
    config: RewardConfig,
    items: Items,
    history_poi: jax.Array,
    history_creative: jax.Array,
    candidates: jax.Array,
) -> Memory:
    """Reads a request, once for all its slates.

    Args:
      params: of the reward model.
      config: its sizes.
      items: what it sees of the items.
      history_poi: `[..., T]` int32, most recent last, -1 where none.
      history_creative: `[..., T]` int32, likewise.
      candidates: `[..., N]` int32 POIs that may be shown, ads and organic, -1 where none; their
        order does not matter.
    """

    def read(model: RewardModel):
        return model.encode(items, history_poi, history_creative, candidates)

    return apply(params, config, read)


def predict(
    params: Params,
    config: RewardConfig,
    items: Items,
    memory: Memory,
    slate_items: jax.Array,
    creatives: jax.Array,
    is_ad: jax.Array,
) -> Predictions:
    """Predicts what the user will do with slates.

    The memory's leading axes broadcast against the slates': one request's serves `[S, K]`.

    Args:
      params: of the reward model.
      config: its sizes.
      items: what it sees of the items.
      memory: from `encode`.
      slate_items: `[..., K]` int32 POIs, -1 where the slot is empty; K is at most `num_slots`.
      creatives: `[..., K]` int32, -1 where none.
      is_ad: `[..., K]` bool.

    Returns:
      The probabilities of each slot's responses.
    """
    chex.assert_equal_shape([slate_items, creatives, is_ad])
    logits = apply(
        params, config, lambda model: model(items, memory, slate_items, creatives, is_ad)
    )
    chance = lambda logit: jnp.where(slate_items >= 0, jax.nn.sigmoid(logit), 0.0)
    return Predictions(
        click_poi=chance(logits.click_poi),
        click_image=chance(logits.click_image),
        convert=chance(logits.convert),
        states=logits.states,
    )
