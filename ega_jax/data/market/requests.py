"""What a platform sees of requests and offers in them: no type here holds a latent."""

import jax
from flax import struct


@struct.dataclass
class Requests:
    """What the platform sees of `B` requests; each row of the log records it."""

    user: jax.Array  # [B] int32.
    history_poi: jax.Array  # [B, T] int32, most recent last, -1 padding on the left.
    history_creative: jax.Array  # [B, T] int32, likewise.
    context: jax.Array  # [B, X] float32, place, hour and surface.


@struct.dataclass
class Book:
    """The live ads of a region on a day, in random order."""

    poi: jax.Array  # [A] int32, distinct, -1 padding on the right.
    bid: jax.Array  # [A] float32, for a click, in currency.


@struct.dataclass
class Slates:
    """The slates of `B` requests; empty slots, on the right, have ids of -1."""

    items: jax.Array  # [B, K] int32 POI ids.
    creatives: jax.Array  # [B, K] int32, of those POIs.
    is_ad: jax.Array  # [B, K] bool.
