"""The true response model: exact click, image-click and conversion probabilities of any slate.

Only simulation and evaluation may use it; training must not. The probability of a click in slot `k`
is `examination_k * sigmoid(utility_k)`. The utility is the sum of interest, intent, distance from
the user's place, quality, hour of the day, surface and creative match, and of three effects of the
slate: crowding (similar items above take clicks), contrast (with the neighbours) and fatigue (each
ad above lowers it). Clicks are independent given the slate. Conversion, given a click, has a
utility of its own without effects of the slate.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.data.market.world import Latents

Array = jax.Array | np.ndarray

EXAMINATION_FALL = 0.25  # A share 1 / (1 + 0.25 k) of the users examines slot k.
INTEREST_SHARPNESS = 4.0  # Inverse temperature of the soft maximum over a user's favourites.
MATCH, APPEAL = 1.0, 0.3  # Weights in a creative's effect: the user's taste, general appeal.
CROWDING = 0.4  # Utility lost per identical item above.
CONTRAST = 0.2  # Utility per unit of attraction above the neighbours' mean.
FATIGUE = 0.12  # Utility lost per ad above.
SURFACES = (0.1, -0.1, -0.3)  # Utility of every item on each surface: feed, search, map.


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a utility's parts for one kind of response."""

    bias: float
    interest: float
    intent: float
    distance: float
    quality: float
    hour: float
    creative: float


# The biases set the rates of the log, and nothing else.
CLICK = Weights(-3.3, interest=1.5, intent=2.0, distance=-0.6, quality=0.5, hour=0.4, creative=0.8)
IMAGE = Weights(-3.2, interest=1.0, intent=1.4, distance=-0.4, quality=0.3, hour=0.3, creative=1.6)
CONVERT = Weights(
    -3.0, interest=0.5, intent=1.5, distance=-0.3, quality=0.5, hour=0.2, creative=0.0
)


@struct.dataclass
class Situation:
    """What determines the responses in `B` sessions, beside the slate and the latents."""

    user: Array  # [B] int32.
    intent: Array  # [B] int32, a POI like those the user looks for.
    place: Array  # [B, 2] float32, where the user is, kilometres.
    hour: Array  # [B] float32 in [0, 24).
    surface: Array  # [B] int32, an index of `SURFACES`.


@struct.dataclass
class Affinity:
    """The parts of each item's utility that do not depend on the slate; all `[B, N]`."""

    interest: jax.Array  # In [-1, 1], similarity to the user's favourites.
    intent: jax.Array  # In [-1, 1], similarity to the session's intent.
    distance: jax.Array  # log(1 + kilometres from the user's place).
    quality: jax.Array  # Standardised.
    hour: jax.Array  # In [-1, 1], 1 at the hour at which the subcategory is liked most.
    surface: jax.Array  # [B, 1], the same for all items.

    def utility(self, weights: Weights) -> jax.Array:
        """Returns the weighted sum of the parts, `[B, N]`, without creative and slate effects."""
        return (
            weights.bias
            + weights.interest * self.interest
            + weights.intent * self.intent
            + weights.distance * self.distance
            + weights.quality * self.quality
            + weights.hour * self.hour
            + self.surface
        )


@struct.dataclass
class Responses:
    """True probabilities of each slot's responses, 0 in empty slots; all `[B, K]` float32."""

    click_poi: jax.Array
    click_image: jax.Array
    convert: jax.Array  # Given a click of the POI.


def affinity(latents: Latents, situation: Situation, items: Array) -> Affinity:
    """Compares each item with the session's user, intent, place and hour.

    Args:
      latents: the world's latents.
      situation: of the sessions.
      items: `[B, N]` int32 POI ids; results at empty places (-1) have no meaning.

    Returns:
      The parts of the utility, `[B, N]`.
    """
    user, z = situation.user, latents.poi_latent[items]
    favourites = latents.poi_latent[latents.user_favourite[user]]
    liking = jnp.einsum("bnl,bfl->bnf", z, favourites, precision="highest")
    weight = latents.user_weight[user][:, None, :]
    interest = jax.nn.logsumexp(INTEREST_SHARPNESS * liking, axis=-1, b=weight)
    wanted = latents.poi_latent[situation.intent]
    gap = latents.poi_place[items] - situation.place[:, None, :]
    late = situation.hour[:, None] - latents.poi_peak[items]
    return Affinity(
        interest=interest / INTEREST_SHARPNESS,
        intent=jnp.einsum("bnl,bl->bn", z, wanted, precision="highest"),
        distance=jnp.log1p(jnp.sqrt(jnp.sum(gap**2, axis=-1))),
        quality=latents.poi_quality[items],
        hour=jnp.cos(2 * jnp.pi / 24 * late),
        surface=jnp.array(SURFACES)[situation.surface][:, None],
    )


def creative_effect(latents: Latents, user: Array, creatives: Array) -> jax.Array:
    """Returns the effect of creatives `[B, N]` on users `[B]`: taste match and general appeal."""
    taste = latents.user_taste[user]
    match = jnp.einsum("bnl,bl->bn", latents.creative_style[creatives], taste, precision="highest")
    return MATCH * match + APPEAL * latents.creative_appeal[creatives]


def examination(num_slots: int) -> jax.Array:
    """Returns the share of users who examine each slot, `[K]`."""
    return 1.0 / (1.0 + EXAMINATION_FALL * jnp.arange(num_slots))


def slate_effect(latents: Latents, items: Array, is_ad: Array, attraction: Array) -> jax.Array:
    """Computes the effect of the other slots on each slot's utility.

    Args:
      latents: the world's latents.
      items: `[B, K]` int32, -1 where empty.
      is_ad: `[B, K]` bool.
      attraction: `[B, K]` the visible part of the utility: quality and creative.

    Returns:
      `[B, K]` float32.
    """
    where = items >= 0
    z = latents.poi_latent[items] * where[..., None]
    alike = jnp.maximum(jnp.einsum("bsl,btl->bst", z, z, precision="highest"), 0.0) ** 2
    above = jnp.tril(jnp.ones(alike.shape[-2:]), -1)
    crowding = jnp.sum(alike * above[None], axis=-1)
    ads_above = (where & is_ad) @ above.T
    beside = jnp.eye(items.shape[1], k=1) + jnp.eye(items.shape[1], k=-1)
    num_beside = where @ beside
    sum_beside = jnp.matmul(attraction * where, beside, precision="highest")
    mean_beside = sum_beside / jnp.maximum(num_beside, 1)
    contrast = jnp.where(num_beside > 0, attraction - mean_beside, 0.0)
    return CONTRAST * contrast - CROWDING * crowding - FATIGUE * ads_above


@jax.jit
def responses(
    latents: Latents, situation: Situation, items: Array, creatives: Array, is_ad: Array
) -> Responses:
    """Computes the exact probabilities of every response to a slate.

    Args:
      latents: the world's latents.
      situation: of the sessions.
      items: `[B, K]` int32 POI ids, -1 where the slot is empty.
      creatives: `[B, K]` int32, of those POIs, -1 where the slot is empty.
      is_ad: `[B, K]` bool.

    Returns:
      Probabilities in (0, 1), and 0 in empty slots.
    """
    parts = affinity(latents, situation, items)
    creative = creative_effect(latents, situation.user, creatives)
    attraction = CLICK.quality * parts.quality + CLICK.creative * creative
    around = slate_effect(latents, items, is_ad, attraction)
    seen = jnp.where(items >= 0, examination(items.shape[1])[None, :], 0.0)

    def probability(weights):
        return jax.nn.sigmoid(parts.utility(weights) + weights.creative * creative + around)

    convert = jax.nn.sigmoid(parts.utility(CONVERT))
    return Responses(
        click_poi=seen * probability(CLICK),
        click_image=seen * probability(IMAGE),
        convert=jnp.where(items >= 0, convert, 0.0),
    )


@struct.dataclass
class Truth:
    """The true response model of a written log; session ids are row numbers over all files."""

    latents: Latents
    situation: Situation  # Of all sessions.

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the truth into the subfolder `truth` of a dataset folder."""
        path = pathlib.Path(folder) / "truth"
        path.mkdir()
        for name, part in (("latents", self.latents), ("sessions", self.situation)):
            fields = {f.name: np.asarray(getattr(part, f.name)) for f in dataclasses.fields(part)}
            np.savez(path / f"{name}.npz", allow_pickle=False, **fields)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Truth":
        """Reads the truth of a dataset folder.

        Raises:
          FileNotFoundError: the folder has no truth.
        """
        path = pathlib.Path(folder) / "truth"
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder: this log has no known truth")
        with np.load(path / "latents.npz") as arrays:
            latents = Latents(**{name: jnp.asarray(arrays[name]) for name in arrays.files})
        with np.load(path / "sessions.npz") as arrays:
            situation = Situation(**{name: jnp.asarray(arrays[name]) for name in arrays.files})
        return cls(latents, situation)

    def responses(self, session: Array, items: Array, creatives: Array, is_ad: Array) -> Responses:
        """Returns the exact response probabilities of slates `[B, K]` in sessions `[B]`."""
        situation = jax.tree.map(lambda x: x[session], self.situation)
        return responses(self.latents, situation, items, creatives, is_ad)
