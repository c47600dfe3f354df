"""The market's entities: POIs, creatives and users; what may be seen of them, and what may not.

*Latents* determine the clicks (`clicks.py`) and what users do. *Observables* are all that a
platform knows: embeddings, regions, bids, budgets and opening days. The logger, the organic ranker
and the ad books take observables alone. Embeddings are a fixed random nonlinear map of the latents
plus noise, or the real embeddings of the world `yelp`. A user's interests are three favourite POIs
of the user's region: drawn by quality in the synthetic world, drawn from the user's own visits in
the world `yelp`.
"""

import dataclasses
import pathlib

import jax
import numpy as np
from flax import struct

from ega_jax.data.market.config import DAYS, MarketConfig
from ega_jax.data.market.regions import device, members_of, padded
from ega_jax.data.market.sources import (
    Source,
    sequences_source,
    standardise,
    synthetic_source,
    unit,
)
from ega_jax.errors import UserError

NUM_FAVOURITES = 3
MIN_CREATIVES, MEDIAN_CREATIVES, MAX_CREATIVES = 2, 5, 16
CREATIVES_LOG_SD = 0.6  # Standard deviation of the log of a POI's number of creatives.
NUM_DISTRICTS = 8  # Per region.
CITY_SIZE = 10.0  # Width of a region, kilometres.
DISTRICT_SIZE = 0.8  # Standard deviation of places in a district, kilometres.
EMBEDDING_NOISE = 0.2  # Standard deviation; the signal's is 1.
ADDRESS_SHARE = 0.3  # World `yelp`: spread that the simulated place adds to an embedding's.
PLACE_UNIT = 3.0  # Kilometres per unit of an observed place, about its spread.
PLACE_NOISE = 0.3  # Standard deviation of an observed place, kilometres.
VALUE_LOG_MEAN = 1.0  # Log of the median value of a click, in currency.
VALUE_LOG_SD_CATEGORY = 0.58
VALUE_LOG_SD_ADVERTISER = 0.60
BUDGET_LOG_SD = 1.0  # Standard deviation of the log of a budget in clicks.
EXPECTED_CTR = 0.06  # By which advertisers plan their budgets.
BUDGET_CLICKS = 2.0  # Median daily budget in the clicks that an average ad expects per day.


@struct.dataclass
class Latents:
    """What only the truth and the users themselves know.

    A cell holds the POIs of one subcategory in one region, first opened first.
    """

    poi_latent: jax.Array  # [P, L] float32, unit length.
    poi_place: jax.Array  # [P, 2] float32, kilometres.
    poi_quality: jax.Array  # [P] float32, standardised.
    poi_peak: jax.Array  # [P] float32, hour of the day at which the subcategory is liked most.
    poi_cell: jax.Array  # [P] int32.
    cell_member: jax.Array  # [P] int32 POIs, cell after cell.
    cell_start: jax.Array  # [cells] int32, where each cell starts in `cell_member`.
    cell_open: jax.Array  # [days, cells] int32, number of open POIs.
    creative_style: jax.Array  # [R, L'] float32, unit length.
    creative_appeal: jax.Array  # [R] float32, standardised.
    user_favourite: jax.Array  # [U, 3] int32 POI ids.
    user_weight: jax.Array  # [U, 3] float32 weights of the favourites, sum 1.
    user_home: jax.Array  # [U, 2] float32, kilometres.
    user_taste: jax.Array  # [U, L'] float32, unit length.
    user_log_activity: jax.Array  # [U] float32, log of a user's rate of sessions.


@struct.dataclass
class Observables:
    """What a platform knows; bids are truthful, so the value of a click is known as well."""

    poi_embedding: jax.Array  # [P, E] float32.
    creative_embedding: jax.Array  # [R, E'] float32.
    creative_poi: jax.Array  # [R] int32, ascending.
    poi_creatives: jax.Array  # [P, 16] int32 creative ids, -1 where none.
    poi_region: jax.Array  # [P] int32.
    opening_day: jax.Array  # [P] int32.
    advertises: jax.Array  # [P] bool.
    log_bid: jax.Array  # [P] float32, log of the typical bid for a click, in currency.
    daily_budget: jax.Array  # [P] float32, in currency.
    user_region: jax.Array  # [U] int32.
    user_place: jax.Array  # [U, 2] float32, observed before the log, in units of `PLACE_UNIT`.
    region_ads: jax.Array  # [G, A] int32 advertisers, -1 padding on the right.
    region_organic: jax.Array  # [G, O'] int32 other POIs, likewise.
    region_users: jax.Array  # [G, U'] int32, likewise.


@struct.dataclass
class World:
    """A market before its first session."""

    latents: Latents
    observables: Observables
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
        source = sequences_source(config, sequences_folder, rng)
    num_users = len(source.user_region)
    config = dataclasses.replace(config, num_pois=len(source.titles), num_users=num_users)
    creative_poi, poi_creatives = _owners(config.num_pois, rng)
    latents = _latents(config, source, len(creative_poi), rng)
    seen = _embeddings(config, source, latents, rng) | _prices(config, source, rng)
    seen |= {"creative_poi": creative_poi, "poi_creatives": poi_creatives} | _regions(source)
    return World(
        latents=Latents(**device(latents)),
        observables=Observables(**device(seen)),
        visits=None if source.visits is None else source.visits.latest(config.history_length),
        titles=source.titles,
        categories=source.categories,
        config=config,
    )


def _owners(num_pois: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gives each POI 2 to 16 creatives: returns each creative's POI `[R]` and ids `[P, 16]`."""
    drawn = MEDIAN_CREATIVES * np.exp(CREATIVES_LOG_SD * rng.normal(size=num_pois))
    count = np.clip(np.rint(drawn), MIN_CREATIVES, MAX_CREATIVES).astype(np.int32)
    first = np.cumsum(count) - count
    slot = np.arange(MAX_CREATIVES)
    table = np.where(slot < count[:, None], first[:, None] + slot, -1)
    return np.repeat(np.arange(num_pois, dtype=np.int32), count), table


def _latents(
    config: MarketConfig, source: Source, num_creatives: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draws the places of the source's POIs, and latents of creatives and users."""
    u = config.num_users
    districts = rng.uniform(0, CITY_SIZE, size=(config.num_regions, NUM_DISTRICTS, 2))
    district = districts[source.region, rng.integers(NUM_DISTRICTS, size=config.num_pois)]
    place = district + DISTRICT_SIZE * rng.normal(size=district.shape)
    favourite = _favourites(config, source, rng)
    peak = rng.uniform(0, 24, size=int(source.subcategory.max()) + 1)
    return _cells(source) | {
        "poi_latent": source.latent,
        "poi_place": place,
        "poi_quality": source.quality,
        "poi_peak": peak[source.subcategory],
        "creative_style": unit(rng.normal(size=(num_creatives, config.style_dim))),
        "creative_appeal": standardise(rng.normal(size=num_creatives)),
        "user_favourite": favourite,
        "user_weight": rng.dirichlet([2.0] * NUM_FAVOURITES, size=u),
        "user_home": place[favourite[:, 0]] + rng.normal(size=(u, 2)),
        "user_taste": unit(rng.normal(size=(u, config.style_dim))),
        "user_log_activity": 0.7 * rng.normal(size=u),
    }


def _cells(source: Source) -> dict[str, np.ndarray]:
    """Groups the POIs by region and subcategory, first opened first."""
    groups = int(source.subcategory.max()) + 1
    cell = source.region * groups + source.subcategory
    num_cells = (int(source.region.max()) + 1) * groups
    opened = [np.bincount(cell[source.opening_day <= d], minlength=num_cells) for d in range(DAYS)]
    return {
        "poi_cell": cell,
        "cell_member": np.lexsort((source.opening_day, cell)),
        "cell_start": np.searchsorted(np.sort(cell), np.arange(num_cells)),
        "cell_open": np.stack(opened),
    }


def _favourites(config: MarketConfig, source: Source, rng: np.random.Generator) -> np.ndarray:
    """Draws favourite POIs `[U, 3]` from the user's visits, or by quality in the user's region."""
    shape = (config.num_users, NUM_FAVOURITES)
    if source.visits is not None:
        return source.visits.sample(rng.random(shape))
    favourite = np.zeros(shape, np.int32)
    pois = members_of(source.region, source.opening_day == 0)
    for members, users in zip(pois, members_of(source.user_region), strict=True):
        weight = np.exp(0.5 * source.quality[members])
        drawn = rng.choice(members, (len(users), NUM_FAVOURITES), p=weight / weight.sum())
        favourite[users] = drawn
    return favourite


def _embeddings(
    config: MarketConfig,
    source: Source,
    latents: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Returns embeddings of POIs and creatives, and a place of each user as a request shows it.

    A real embedding says nothing of the simulated place, so the place is added to it.
    """
    place = latents["poi_place"] / CITY_SIZE
    if source.embedding is None:
        poi = (source.latent, place, source.quality / 4)
        poi_embedding = _embed(poi, config.poi_embedding_dim, rng)
    else:
        address = _embed((place,), source.embedding.shape[1], rng)
        poi_embedding = source.embedding + ADDRESS_SHARE * source.embedding.std() * address
    creative = (latents["creative_style"], latents["creative_appeal"] / 4)
    home = latents["user_home"] + rng.normal(size=latents["user_home"].shape)
    return {
        "poi_embedding": poi_embedding,
        "creative_embedding": _embed(creative, config.creative_embedding_dim, rng),
        "user_place": (home - CITY_SIZE / 2) / PLACE_UNIT,
    }


def _prices(
    config: MarketConfig, source: Source, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draws log-normal values of a click, by subcategory and advertiser, and daily budgets."""
    num_groups = int(source.subcategory.max()) + 1
    group_value = standardise(rng.normal(size=num_groups)[source.subcategory])
    log_bid = (
        VALUE_LOG_MEAN
        + VALUE_LOG_SD_CATEGORY * group_value
        + VALUE_LOG_SD_ADVERTISER * standardise(rng.normal(size=config.num_pois))
    )
    impressions = config.num_sessions / DAYS * config.max_ads
    expected = EXPECTED_CTR * impressions / source.advertises.sum()
    clicks = BUDGET_CLICKS * expected * np.exp(BUDGET_LOG_SD * rng.normal(size=config.num_pois))
    return {"log_bid": log_bid, "daily_budget": clicks * np.exp(log_bid)}


def _regions(source: Source) -> dict[str, np.ndarray]:
    """Returns the regions, and each region's advertisers, other POIs and users."""
    return {
        "poi_region": source.region,
        "opening_day": source.opening_day,
        "advertises": source.advertises,
        "user_region": source.user_region,
        "region_ads": padded(members_of(source.region, source.advertises)),
        "region_organic": padded(members_of(source.region, ~source.advertises)),
        "region_users": padded(members_of(source.user_region)),
    }


def _embed(features: tuple[np.ndarray, ...], width: int, rng: np.random.Generator) -> np.ndarray:
    """Maps latents through two random layers to `[N, width]`, standardised, plus noise."""
    x = np.column_stack(features)
    hidden = np.tanh(x @ rng.normal(size=(x.shape[1], 2 * width)) + rng.normal(size=2 * width))
    y = hidden @ rng.normal(size=(2 * width, width))
    y = (y - y.mean(axis=0)) / y.std()
    return (y + EMBEDDING_NOISE * rng.normal(size=y.shape)).astype(np.float32)
