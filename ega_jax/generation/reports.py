"""Counterfactuals of a request: other bids of single ads, and absent candidates."""

import jax
import jax.numpy as jnp
from flax import struct

ABSENT = -1.0  # The bid in a `Report` of a candidate that is absent.


@struct.dataclass
class Report:
    """A counterfactual: one ad bids another amount, or one candidate is absent.

    It is laid over a book, which stays as it is.
    """

    candidate: jax.Array  # [...] int32, -1 for no change; with a bid an ad.
    bid: jax.Array  # [...] float32 currency per click; `ABSENT`: the candidate may not be shown.

    @classmethod
    def none(cls, *shape: int) -> "Report":
        """Reports of any shape that change nothing."""
        return cls(jnp.full(shape, -1, jnp.int32), jnp.full(shape, ABSENT, jnp.float32))


def absent(candidates: jax.Array) -> Report:
    """Reports `[...]` that each of the candidates is absent; -1 changes nothing."""
    return Report(candidates, jnp.full(candidates.shape, ABSENT, jnp.float32))


@struct.dataclass
class Overlay:
    """A report with its place in a book."""

    candidate: jax.Array  # [...] int32, as in `Report`.
    bid: jax.Array  # [...] float32, as in `Report`.
    path: jax.Array  # [..., C] int32 nodes of depths 1 to C that hold the ad, -1 if it is none.
