"""Judges of slates: the market's truth, and a reward model.

The search for the best slates (`attainable`) takes either, so that its slates are the best by the
truth or the best by what a model can see.
"""

import dataclasses
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.data.market.clicks import Truth
from ega_jax.reward import model
from ega_jax.reward.model import Items, Memory, RewardConfig
from ega_jax.types import AnyRequest, Params, organic_pois

Array = jax.Array | np.ndarray


class SlateJudge(Protocol):
    """Knows the click probabilities of any number of slates of each of `D` requests.

    `serving.Judge` tells of the slate that is served, and of all responses.
    """

    at_once: ClassVar[int]  # Slates per call of `clicks`: a fixed number, so that it compiles once.

    def clicks(self, row: Array, item: Array, creative: Array, is_ad: Array) -> Array:
        """Returns click probabilities `[X, K]` of slates in requests `row [X]`, 0 in empty slots.

        Args:
          row: `[X]` int, which of the `D` requests.
          item: `[X, K]` int32 POI ids, -1 in empty slots.
          creative: `[X, K]` int32 creatives, -1 where none.
          is_ad: `[X, K]` bool.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TrueClicks:
    """The true click probabilities of a simulated market."""

    truth: Truth
    session: np.ndarray  # [D] int32, the requests' sessions in the log.
    at_once: ClassVar[int] = 4096

    def clicks(self, row: Array, item: Array, creative: Array, is_ad: Array) -> Array:
        """Returns true click probabilities; see `SlateJudge`."""
        return self.truth.responses(self.session[row], item, creative, is_ad).click_poi


@dataclasses.dataclass(frozen=True)
class PredictedClicks:
    """The click probabilities that a reward model predicts."""

    params: Params
    config: RewardConfig
    items: Items
    memory: Memory  # The encoded requests, [D, ...].
    at_once: ClassVar[int] = 1024  # Faster than more, since the slates' states stay in the cache.

    @classmethod
    def of(
        cls, params: Params, config: RewardConfig, items: Items, request: AnyRequest
    ) -> "PredictedClicks":
        """Encodes `D` requests for all their slates."""
        asked = {name: x for name, x in vars(request).items() if x is not None}
        history = asked["history_poi"], asked["history_creative"]
        read = *history, organic_pois(asked), asked.get("context")
        return cls(params, config, items, _encode(params, config, items, *read))

    def clicks(self, row: Array, item: Array, creative: Array, is_ad: Array) -> Array:
        """Returns predicted click probabilities; see `SlateJudge`."""
        memory = jax.tree.map(lambda x: x[jnp.asarray(row)], self.memory)
        slates = jnp.asarray(item), jnp.asarray(creative), jnp.asarray(is_ad)
        return _click_poi(self.params, self.config, self.items, memory, *slates)


_encode = jax.jit(model.encode, static_argnames="config")


@jax.jit(static_argnames="config")
def _click_poi(
    params: Params,
    config: RewardConfig,
    items: Items,
    memory: Memory,
    item: jax.Array,
    creative: jax.Array,
    is_ad: jax.Array,
) -> jax.Array:
    """Predicts clicks of the POIs alone, so that the other responses are not computed."""
    return model.predict(params, config, items, memory, item, creative, is_ad).click_poi
