"""The reward model as pure functions: initialise, encode a request, predict (sec. 4.2)."""

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
    """Predicted probabilities of the responses in each slot, 0 in empty slots."""

    click_poi: jax.Array  # [..., K] float32, click on the POI.
    click_image: jax.Array  # [..., K] float32, click on the creative's image.
    convert: jax.Array  # [..., K] float32, conversion given a click on the POI.
    states: jax.Array  # [..., K, 2 D] each slot's state, concatenated with the slate's mean state.


def init(key: chex.PRNGKey, config: RewardConfig, items: Items) -> Params:
    """Initial parameters of a reward model; pure, so `jax.eval_shape` can compute their shapes."""
    past = jnp.zeros((1, config.history_length), jnp.int32)
    slots = jnp.zeros((1, config.num_slots), jnp.int32)
    context = jnp.zeros((1, config.context.width))

    def whole(model: RewardModel):
        memory = model.encode(items, past, past, slots, context)
        return model(items, memory, slots, slots, slots > 0)

    return nn.init(whole, RewardModel(config))(key)["params"]


def apply(params: Params, config: RewardConfig, function, **kwargs: Any) -> Any:
    """Calls `function(network)` with bound parameters; `kwargs` go to Flax's `apply`."""
    return RewardModel(config).apply({"params": params}, method=function, **kwargs)


def encode(
    params: Params,
    config: RewardConfig,
    items: Items,
    history_poi: jax.Array,
    history_creative: jax.Array,
    organic: jax.Array,
    context: jax.Array | None = None,
) -> Memory:
    """Encodes a request, once for all its slates.

    Args:
      params: parameters of the reward model.
      config: sizes of the reward model.
      items: codes and embeddings of the items.
      history_poi: `[..., T]` int32, most recent last, -1 padding.
      history_creative: `[..., T]` int32, likewise.
      organic: `[..., N]` int32 POIs of the request's organic items, -1 padding; their order does
        not matter.
      context: `[..., X]` float32 contexts as logged; ignored by a model that reads none.
    """

    def read(model: RewardModel):
        return model.encode(items, history_poi, history_creative, organic, context)

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
    """Predicts the user's responses to slates.

    The leading axes of `memory` broadcast against those of the slates, so the memory of one request
    serves slates `[S, K]`.

    Args:
      params: parameters of the reward model.
      config: sizes of the reward model.
      items: codes and embeddings of the items.
      memory: the encoded request, from `encode`.
      slate_items: `[..., K]` int32 POIs, -1 in empty slots; K is at most `num_slots`.
      creatives: `[..., K]` int32, -1 without creative.
      is_ad: `[..., K]` bool.

    Returns:
      The predicted probabilities of each slot's responses.
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
