"""Users of a simulated market, who answer slates that its log does not have."""

import dataclasses
import pathlib

import jax
import numpy as np

from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.requests import Slates
from ega_jax.data.market.simulation import Feedback, respond


@dataclasses.dataclass(frozen=True)
class Audience:
    """The users of a log's sessions.

    They tell what they do and not how likely it was, so models may learn from them.
    """

    _truth: Truth

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Audience":
        """Finds the users of a dataset folder.

        Raises:
          FileNotFoundError: the log is not that of a simulated market.
        """
        return cls(Truth.load(folder))

    def answer(
        self,
        key: jax.Array,
        session: np.ndarray,
        items: jax.Array,
        creatives: jax.Array,
        is_ad: jax.Array,
    ) -> Feedback:
        """Draws what the users of sessions `[B]` do with slates `[B, K]`.

        Args:
          key: random key.
          session: `[B]` numbers of the log's sessions.
          items: `[B, K]` int32 POIs, -1 in empty slots.
          creatives: `[B, K]` int32, of those POIs, -1 in empty slots.
          is_ad: `[B, K]` bool.
        """
        situation = jax.tree.map(lambda x: x[session], self._truth.situation)
        return respond(key, self._truth.latents, situation, Slates(items, creatives, is_ad))
