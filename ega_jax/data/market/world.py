"""The market's entities: POIs, creatives and users, with latents and observable embeddings.

Latents determine the clicks (`clicks.py`) and are hidden from the models. The models see
embeddings: a fixed random nonlinear map of the latents plus noise, or the real POI embeddings of
the world `yelp`. A user's interests are three favourite POIs: drawn by quality in the synthetic
world, drawn from the user's own visits in the world `yelp`.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.sampling import Groups
from ega_jax.data.market.sources import (
    Source,
    sequences_source,
    standardise,
    synthetic_source,
    unit,
)
from ega_jax.errors import UserError

NUM_FAVOURITES = 3
MIN_CREATIVES, MAX_CREATIVES = 2, 5
NUM_DISTRICTS = 8
CITY_SIZE = 10.0  # Kilometres.
DISTRICT_SIZE = 0.8  # Standard deviation of places in a district, kilometres.
EMBEDDING_NOISE = 0.2  # Standard deviation; the signal's is 1.
VALUE_LOG_MEAN = 1.0  # Log of the median value of a click, in currency.
VALUE_LOG_SD_CATEGORY = 0.58
VALUE_LOG_SD_ADVERTISER = 0.60


@struct.dataclass
class Latents:
    """The parameters of the true response model; hidden from the trained models."""

    poi_latent: jax.Array  # [P, L] float32, unit length.
    poi_place: jax.Array  # [P, 2] float32, kilometres.
    poi_quality: jax.Array  # [P] float32, standardised.
    creative_style: jax.Array  # [R, L'] float32, unit length.
    creative_appeal: jax.Array  # [R] float32, standardised.
    user_favourite: jax.Array  # [U, 3] int32 POI ids.
    user_weight: jax.Array  # [U, 3] float32 weights of the favourites, sum 1.
    user_home: jax.Array  # [U, 2] float32, kilometres.
    user_taste: jax.Array  # [U, L'] float32, unit length.


@struct.dataclass
class Supply:
    """The POIs that can be shown, the advertisers, and their values of a click."""

    subcategory: jax.Array  # [P] int32.
    pois: Groups  # All POIs by subcategory.
    advertisers: jax.Array  # [A'] int32, POIs that buy ads.
    advertises: jax.Array  # [P] bool, whether the POI buys ads.
    log_value: jax.Array  # [P] float32, log of the typical value of a click in currency.
    poi_creatives: jax.Array  # [P, M] int32 creative ids, -1 where none.
    log_activity: jax.Array  # [U] float32, log of a user's rate of sessions.


@struct.dataclass
class World:
    """A market before its first session."""

    latents: Latents
    supply: Supply
    poi_embedding: np.ndarray  # [P, E] float32.
    creative_embedding: np.ndarray  # [R, E'] float32.
    creative_poi: np.ndarray  # [R] int32, ascending.
    visits: np.ndarray | None  # [U, T] int32 real initial histories, -1 padding on the left.
    titles: list[str] = struct.field(pytree_node=False)
    categories: list[str] = struct.field(pytree_node=False)
    config: MarketConfig = struct.field(pytree_node=False)  # With the actual sizes.


def make_world(config: MarketConfig, sequences_folder: str | pathlib.Path | None = None) -> World:
    """Makes the entities of a market from its seed.

    Args:
      config: sizes, seed and kind of world.
      sequences_folder: for the world `yelp`, a folder in the sequences format.

    Returns:
      The world; its `config` has the actual numbers of POIs and users.

    Raises:
      UserError: the world `yelp` has no folder, or the folder holds too little data.
      DataError: the folder breaks a rule of its format.
    """
    rng = np.random.default_rng(config.seed)
    if config.world == "synthetic":
        source = synthetic_source(config, rng)
    elif sequences_folder is None:
        raise UserError("the market world `yelp` needs sequences_folder")
    else:
        source = sequences_source(config, sequences_folder)
    if source.visits is not None:
        num_users = len(source.visits.offsets) - 1
        config = dataclasses.replace(config, num_pois=len(source.titles), num_users=num_users)
    creative_poi, poi_creatives = _owners(config.num_pois, rng)
    latents = _latents(config, source, len(creative_poi), rng)
    poi_embedding = source.embedding
    if poi_embedding is None:
        features = (latents.poi_latent, latents.poi_place / CITY_SIZE, latents.poi_quality / 4)
        poi_embedding = _embed(features, config.poi_embedding_dim, rng)
    features = (latents.creative_style, latents.creative_appeal / 4)
    return World(
        latents=latents,
        supply=_supply(config, source, poi_creatives, rng),
        poi_embedding=poi_embedding,
        creative_embedding=_embed(features, config.creative_embedding_dim, rng),
        creative_poi=creative_poi,
        visits=None if source.visits is None else source.visits.latest(config.history_length),
        titles=source.titles,
        categories=source.categories,
        config=config,
    )


def _owners(num_pois: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gives each POI 2 to 5 creatives: returns each creative's POI `[R]` and the ids `[P, 5]`."""
    count = rng.integers(MIN_CREATIVES, MAX_CREATIVES + 1, size=num_pois)
    first = np.cumsum(count) - count
    slot = np.arange(MAX_CREATIVES)
    table = np.where(slot < count[:, None], first[:, None] + slot, -1)
    return np.repeat(np.arange(num_pois, dtype=np.int32), count), table.astype(np.int32)


def _latents(
    config: MarketConfig, source: Source, num_creatives: int, rng: np.random.Generator
) -> Latents:
    """Draws the places of the source's POIs, and latents of creatives and users."""
    u = config.num_users
    districts = rng.uniform(0, CITY_SIZE, size=(NUM_DISTRICTS, 2))
    district = districts[rng.integers(NUM_DISTRICTS, size=config.num_pois)]
    place = district + DISTRICT_SIZE * rng.normal(size=district.shape)
    favourite = _favourites(config, source, rng)
    fields = {
        "poi_latent": source.latent,
        "poi_place": place,
        "poi_quality": source.quality,
        "creative_style": unit(rng.normal(size=(num_creatives, config.style_dim))),
        "creative_appeal": standardise(rng.normal(size=num_creatives)),
        "user_favourite": favourite,
        "user_weight": rng.dirichlet([2.0] * NUM_FAVOURITES, size=u),
        "user_home": place[favourite[:, 0]] + rng.normal(size=(u, 2)),
        "user_taste": unit(rng.normal(size=(u, config.style_dim))),
    }
    return Latents(**_device(fields))


def _favourites(config: MarketConfig, source: Source, rng: np.random.Generator) -> np.ndarray:
    """Draws each user's favourite POIs `[U, 3]`: from the user's visits, or by quality."""
    shape = (config.num_users, NUM_FAVOURITES)
    if source.visits is not None:
        return source.visits.sample(rng.random(shape))
    weight = np.exp(0.5 * source.quality)
    return rng.choice(len(weight), size=shape, p=weight / weight.sum()).astype(np.int32)


def _supply(
    config: MarketConfig, source: Source, poi_creatives: np.ndarray, rng: np.random.Generator
) -> Supply:
    """Draws the advertisers and log-normal values of a click, by subcategory and advertiser."""
    num_groups = int(source.subcategory.max()) + 1
    buyers = np.sort(rng.choice(config.num_pois, size=config.num_advertisers, replace=False))
    group_value = standardise(rng.normal(size=num_groups)[source.subcategory])
    log_value = (
        VALUE_LOG_MEAN
        + VALUE_LOG_SD_CATEGORY * group_value
        + VALUE_LOG_SD_ADVERTISER * standardise(rng.normal(size=config.num_pois))
    )
    fields = {
        "subcategory": source.subcategory,
        "advertisers": buyers,
        "advertises": np.isin(np.arange(config.num_pois), buyers),
        "log_value": log_value,
        "poi_creatives": poi_creatives,
        "log_activity": 0.7 * rng.normal(size=config.num_users),
    }
    return Supply(pois=_group(source.subcategory, num_groups), **_device(fields))


def _device(fields: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Moves arrays to the device, integers as int32 and floats as float32."""
    dtypes = {"i": jnp.int32, "f": jnp.float32, "b": jnp.bool_}
    return {name: jnp.asarray(x, dtypes[x.dtype.kind]) for name, x in fields.items()}


def _group(group: np.ndarray, num_groups: int) -> Groups:
    """Sorts the rows of `group [P]` by their group."""
    start = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=num_groups))])
    return Groups(**_device({"members": np.argsort(group, kind="stable"), "start": start}))


def _embed(features: tuple[jax.Array, ...], width: int, rng: np.random.Generator) -> np.ndarray:
    """Maps latents through two random layers to `[N, width]`, standardised, plus noise."""
    x = np.column_stack([np.asarray(f) for f in features])
    hidden = np.tanh(x @ rng.normal(size=(x.shape[1], 2 * width)) + rng.normal(size=2 * width))
    y = hidden @ rng.normal(size=(2 * width, width))
    y = (y - y.mean(axis=0)) / y.std()
    return (y + EMBEDDING_NOISE * rng.normal(size=y.shape)).astype(np.float32)
