"""The pytrees that the stages exchange, and the dimension legend.

A docstring that uses another letter, or gives a letter another meaning, says so:

| letter | meaning                                               | paper's value |
|--------|-------------------------------------------------------|---------------|
| `B`    | batch of requests                                     | 128           |
| `T`    | behaviours in the user's history                      | 256           |
| `K`    | slots in a slate (items shown per request)            | 10            |
| `C`    | codebook layers                                       | 3             |
| `W`    | codes per layer                                       | 1024          |
| `P`    | POIs of the catalogue                                 |               |
| `R`    | creatives of the catalogue                            |               |
| `M`    | largest number of creatives of one POI                |               |
| `N`    | candidates of a request: ads and organic items        |               |
| `X`    | values of a request's context; 0 without a context    |               |
| `S`    | beams = candidate slates                              | 64            |
| `D`    | model width; `E` width of an item embedding           |               |
| `J`    | misreports tried per advertiser                       | 10            |

Ids are row numbers; `-1` marks an empty entry in any list of ids.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct

IMPOSSIBLE = -1e30  # The score or log-probability of an invalid option.

Params = Any
Metrics = dict[str, jax.Array]


class LossFn(Protocol):
    """The signature of a loss that the training loop accepts."""

    def __call__(
        self, params: Params, variables: Any, batch: Any, key: chex.PRNGKey, /
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        """Returns the loss `[]`, then metrics to log and the new variables.

        The gradient is taken with respect to `params`. The loss itself updates `variables`, such as
        Lagrange multipliers or counts of code usage.
        """
        ...


FARTHEST = 10.0  # Deviations from the mean at which a value of the context is clipped.


@dataclasses.dataclass(frozen=True)
class ContextScale:
    """Mean and standard deviation of each value of the context, over the training sessions.

    They are static, so a model needs no parameters for them; without a context they are empty.

    Examples:
      >>> import numpy as np
      >>> scale = ContextScale(mean=(2.0, 7.0), deviation=(0.5, 0.0))
      >>> scale.standardised(np.array([[3.0, 7.0], [1.5, 8.0]])).tolist()
      [[2.0, 0.0], [-1.0, 0.0]]
    """

    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()  # 0 for a value that never varies; models then ignore it.

    @property
    def width(self) -> int:
        """X."""
        return len(self.mean)

    def standardised(self, context: jax.Array) -> jax.Array:
        """Scales contexts `[..., X]` to mean 0 and deviation 1, clipped to `FARTHEST`."""
        mean, deviation = (jnp.asarray(x, jnp.float32) for x in (self.mean, self.deviation))
        mean, deviation = jnp.broadcast_arrays(mean, deviation, context)[:2]
        scaled = (context - mean) / jnp.where(deviation > 0, deviation, 1.0)
        return jnp.where(deviation > 0, jnp.clip(scaled, -FARTHEST, FARTHEST), 0.0)


@dataclasses.dataclass(frozen=True)
class SessionSizes:
    """Sizes of tokens and sessions, shared by all models of a workdir."""

    num_codes: int  # W
    num_layers: int  # C
    num_slots: int  # K
    history_length: int  # T
    context: ContextScale = ContextScale()  # Scale of the context that the models read.

    @property
    def shared(self) -> dict[str, Any]:
        """These fields as keyword arguments for another model's config."""
        names = (field.name for field in dataclasses.fields(SessionSizes))
        return {name: getattr(self, name) for name in names}


@struct.dataclass
class Catalogue:
    """Codes and creatives of the items, as device arrays indexed by id.

    A catalogue without creatives has `R = 0` and `poi_creatives` of width 0.
    """

    poi_codes: jax.Array  # [P, C] int32, in [0, W).
    creative_codes: jax.Array  # [R, C] int32, in [0, W).
    poi_creatives: jax.Array  # [P, M] int32 creative ids, -1 padding.


@struct.dataclass
class Sessions:
    """A batch of histories and the slates shown next: the generator's training data."""

    history_poi: jax.Array  # [B, T] int32, most recent last, -1 padding on the left.
    history_creative: jax.Array  # [B, T] int32, likewise; all -1 without creatives.
    target_poi: jax.Array  # [B, K] int32, -1 padding on the right.
    target_creative: jax.Array  # [B, K] int32, likewise; all -1 without creatives.
    target_weight: jax.Array  # [B, K] float32 weight of the slot in the loss, 0 where empty.
    context: jax.Array | None = None  # [B, X] float32, as logged; None without a context.


@struct.dataclass
class Request:
    """A batch of requests: each user's behaviour history and a list of candidate items.

    Examples:
      >>> import numpy as np
      >>> request = Request(  # One request: two ads, then two organic items in upstream order.
      ...     history_poi=np.array([[3, 7]]),
      ...     history_creative=np.array([[6, 15]]),
      ...     item=np.array([[2, 5, 8, 1]]),
      ...     is_ad=np.array([[True, True, False, False]]),
      ...     bid=np.array([[1.2, 0.8, 0.0, 0.0]]),
      ... )
      >>> request.item.shape  # [B, N]
      (1, 4)
    """

    history_poi: jax.Array  # [B, T] int32, most recent last, -1 padding on the left.
    history_creative: jax.Array  # [B, T] int32, likewise.
    item: jax.Array  # [B, N] int32 POI ids, -1 padding; organic items in upstream order.
    is_ad: jax.Array  # [B, N] bool.
    bid: jax.Array  # [B, N] float32, value of one click in currency; 0 for organic items.
    context: jax.Array | None = None  # [B, X] float32, as in the log; None if models read none.


@struct.dataclass
class BookRequest:
    """A batch of requests to ad books: each user's behaviour history and organic items.

    The ads and their bids are those of a book of the system's forest of books.
    """

    history_poi: jax.Array  # [B, T] int32, most recent last, -1 padding on the left.
    history_creative: jax.Array  # [B, T] int32, likewise.
    organic: jax.Array  # [B, M] int32 POI ids in upstream order, -1 padding on the right.
    book: jax.Array  # [B] int32 number of the book in the forest.
    context: jax.Array | None = None  # [B, X] float32, as in the log; None if models read none.


AnyRequest = Request | BookRequest


def organic_pois(fields: Mapping[str, Any]) -> Any:
    """POI ids of the organic items of requests, `[..., M]` int32, -1 padding.

    Args:
      fields: the fields of `Request` or of `BookRequest`.
    """
    if "organic" in fields:
        return fields["organic"]
    return jnp.where(fields["is_ad"], -1, fields["item"])


def repeats_an_ad(item: Any, is_ad: Any) -> Any:
    """Marks organic candidates whose POI is also an ad of the request.

    Args:
      item: `[..., N]` int32 POI ids, -1 padding; a NumPy or JAX array.
      is_ad: `[..., N]` bool.

    Returns:
      `[..., N]` bool.

    Examples:
      >>> import numpy as np
      >>> repeats_an_ad(np.array([4, 7, 4, 9]), np.array([True, True, False, False])).tolist()
      [False, False, True, False]
    """
    same = item[..., :, None] == item[..., None, :]
    return ~is_ad & (item >= 0) & (same & is_ad[..., None, :]).any(-1)


@struct.dataclass
class Slate:
    """The items shown for a batch of requests, and their prices per click."""

    items: jax.Array  # [B, K] int32 POI ids, -1 in empty slots.
    creatives: jax.Array  # [B, K] int32 creative ids, -1 without creative.
    is_ad: jax.Array  # [B, K] bool.
    bid: jax.Array  # [B, K] float32, currency per click; 0 for organic items.
    price_per_click: jax.Array  # [B, K] float32, currency per click; 0 for organic items.
    pctr: jax.Array  # [B, K] float32, predicted click probability of the POI.
    pctr_image: jax.Array  # [B, K] float32, predicted click probability of the creative.
    pcvr: jax.Array  # [B, K] float32, predicted conversion probability, given a click of the POI.
