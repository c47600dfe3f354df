"""Sources of a market's POIs: random draws, or a folder of public sequences."""

import collections
import dataclasses
import pathlib

import numpy as np

from ega_jax.data.item_rules import open_items
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.regions import co_visit_regions, roles
from ega_jax.data.reading import read_lists, read_matrix
from ega_jax.data.schema import validate
from ega_jax.data.sequence_rules import open_sequences
from ega_jax.data.texts import read_tags, read_texts
from ega_jax.errors import UserError

CATEGORY_NAMES = (
    *("Noodles", "Coffee", "Hotpot", "Bakery", "Barbecue", "Seafood", "Salad", "Pizza"),
    *("Dessert", "Sushi", "Hotel", "Cinema", "Massage", "Hairdresser", "Gym", "Florist"),
    *("Pharmacy", "Bookshop", "Karaoke", "Clinic"),
)
SUBCATEGORY_SPREAD = 0.7  # Distance of a subcategory's centre from its category's, unnormalised.
POI_SPREAD = 0.6  # Distance of a POI from its subcategory's centre, unnormalised.
MIN_VISITS = 3  # Least number of a real user's visits to kept POIs.
COMMON_TAG = 0.1  # A tag on a larger share of POIs cannot be a subcategory.
RARE_TAG = 0.002  # A tag on a smaller share of POIs cannot be a subcategory.


@dataclasses.dataclass(frozen=True)
class Visits:
    """The visits of real users."""

    poi: np.ndarray  # [V] int32 POI ids, user by user, in time order.
    offsets: np.ndarray  # [U + 1] int64, start of each user's visits.

    def latest(self, count: int) -> np.ndarray:
        """Returns each user's last visits `[U, count]`, -1 padding on the left."""
        index = self.offsets[1:, None] - count + np.arange(count)
        known = index >= self.offsets[:-1, None]
        return np.where(known, self.poi[np.maximum(index, 0)], -1).astype(np.int32)

    def sample(self, uniform: np.ndarray) -> np.ndarray:
        """Picks one visit of each user per uniform `[U, N]` in [0, 1)."""
        step = (uniform * np.diff(self.offsets)[:, None]).astype(np.int64)
        return self.poi[self.offsets[:-1, None] + step]


@dataclasses.dataclass(frozen=True)
class Source:
    """POIs with their latents; a real source also has their embeddings and visits."""

    latent: np.ndarray  # [P, L] float32, unit length.
    quality: np.ndarray  # [P] float32, standardised.
    subcategory: np.ndarray  # [P] int32.
    titles: list[str]
    categories: list[str]  # "category > subcategory" of each POI.
    region: np.ndarray  # [P] int32.
    user_region: np.ndarray  # [U] int32.
    advertises: np.ndarray  # [P] bool, whether the POI buys ads.
    opening_day: np.ndarray  # [P] int32, 0 for most.
    embedding: np.ndarray | None = None  # [P, E] float32.
    visits: Visits | None = None


def unit(x: np.ndarray) -> np.ndarray:
    """Scales the last axis to length one; a zero vector stays zero."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def standardise(x: np.ndarray) -> np.ndarray:
    """Moves `[N]` values to mean 0 and standard deviation 1; constant values become 0."""
    spread = x.std()
    return (x - x.mean()) / spread if spread > 0 else np.zeros_like(x)


def synthetic_source(config: MarketConfig, rng: np.random.Generator) -> Source:
    """Draws POIs whose latents cluster in a taxonomy of two levels."""
    p, latent_dim = config.num_pois, config.latent_dim
    shape = (config.num_categories, config.num_subcategories, latent_dim)
    tops = unit(rng.normal(size=(shape[0], 1, latent_dim)))
    subs = unit(tops + SUBCATEGORY_SPREAD * unit(rng.normal(size=shape))).reshape(-1, latent_dim)
    subcategory = rng.integers(len(subs), size=p).astype(np.int32)
    latent = unit(subs[subcategory] + POI_SPREAD * unit(rng.normal(size=(p, latent_dim))))
    names = [_category_names(i, config.num_subcategories) for i in range(len(subs))]
    region = rng.permutation(p).astype(np.int32) % config.num_regions
    advertises, opening_day = roles(region, rng)
    return Source(
        latent=latent.astype(np.float32),
        quality=standardise(rng.normal(size=p)).astype(np.float32),
        subcategory=subcategory,
        titles=[f"{names[sub][1]} no. {i}" for i, sub in enumerate(subcategory)],
        categories=[" > ".join(names[sub]) for sub in subcategory],
        region=region,
        user_region=np.arange(config.num_users, dtype=np.int32) % config.num_regions,
        advertises=advertises,
        opening_day=opening_day,
    )


def _category_names(index: int, num_subcategories: int) -> tuple[str, str]:
    top, sub = divmod(index, num_subcategories)
    again, name = divmod(top, len(CATEGORY_NAMES))
    category = CATEGORY_NAMES[name] + (f" {chr(ord('A') + again)}" if again else "")
    return category, f"{category} {sub + 1}"


def sequences_source(
    config: MarketConfig, folder: str | pathlib.Path, rng: np.random.Generator
) -> Source:
    """Reads real POIs and visits from a folder in the sequences format.

    The latents are the principal components of the embeddings, the quality is the standardised
    log of the number of visits, the taxonomy comes from the POIs' tags, and the regions from
    visits of the same users. A user's region is that of most visits; visits to other regions and
    to POIs that open late are dropped.

    Args:
      config: its `num_pois` and `num_users` bound the numbers of POIs and users.
      folder: a folder with `items.parquet` and `sequences.parquet`.
      rng: random generator.

    Returns:
      The source, with the most visited POIs and users of at least `MIN_VISITS` visits to them.

    Raises:
      DataError: the folder breaks a rule of its format.
      UserError: the folder holds an ad log, or no user has enough visits.
    """
    folder = pathlib.Path(folder)
    if validate(folder).format != "sequences":
        raise UserError(f"{folder} holds an ad log; the market world `yelp` takes sequences")
    items = open_items(folder)
    sequences = read_lists(open_sequences(folder), "items", np.int32)
    counts = np.bincount(sequences.values, minlength=items.num_rows)
    kept = np.sort(np.argsort(-counts, kind="stable")[: config.num_pois])
    user, poi = _renumbered(sequences.values, sequences.lengths, kept, items.num_rows)
    region = co_visit_regions(user, poi, len(kept), config.num_regions)
    advertises, opening_day = roles(region, rng)
    user_region = _most_visited(user, region[poi], len(sequences.lengths), config.num_regions)
    inside = (region[poi] == user_region[user]) & (opening_day[poi] == 0)
    visits, users = _kept_visits(user[inside], poi[inside], config.num_users)
    _require_regions(folder, user_region[users], config.num_regions)
    embedding = read_matrix(items, "embedding")[kept]
    tags, titles = read_tags(items, "categories"), read_texts(items, "title")
    subcategory, categories = _taxonomy([tags[i] for i in kept])
    return Source(
        latent=_principal_components(embedding, config.latent_dim),
        quality=standardise(np.log1p(counts[kept])).astype(np.float32),
        subcategory=subcategory,
        titles=[titles[item] or f"POI {i}" for i, item in enumerate(kept)],
        categories=categories,
        region=region,
        user_region=user_region[users],
        advertises=advertises,
        opening_day=opening_day,
        embedding=embedding,
        visits=visits,
    )


def _renumbered(
    visits: np.ndarray, lengths: np.ndarray, kept: np.ndarray, num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the users `[V]` of visits to kept POIs, and the new ids `[V]` of these POIs."""
    new_id = np.full(num_items, -1, np.int32)
    new_id[kept] = np.arange(len(kept))
    user = np.repeat(np.arange(len(lengths)), lengths)
    where = new_id[visits] >= 0
    return user[where], new_id[visits[where]]


def _most_visited(
    user: np.ndarray, region: np.ndarray, num_users: int, num_regions: int
) -> np.ndarray:
    """Returns the region `[U]` of most visits of each user."""
    count = np.bincount(user * num_regions + region, minlength=num_users * num_regions)
    return count.reshape(num_users, num_regions).argmax(axis=1).astype(np.int32)


def _kept_visits(user: np.ndarray, poi: np.ndarray, num_users: int) -> tuple[Visits, np.ndarray]:
    """Drops users with too few visits; returns the visits and the ids of the users kept."""
    count = np.bincount(user, minlength=1)
    users = np.flatnonzero(count >= MIN_VISITS)[:num_users]
    return Visits(poi[np.isin(user, users)], np.concatenate([[0], np.cumsum(count[users])])), users


def _require_regions(folder: pathlib.Path, user_region: np.ndarray, num_regions: int):
    """Refuses visits that leave a region without users."""
    empty = np.bincount(user_region, minlength=num_regions) == 0
    if empty.any():
        raise UserError(
            f"{folder}/sequences.parquet: no user has {MIN_VISITS} visits in region "
            f"{empty.argmax()} of {num_regions}"
        )


def _principal_components(x: np.ndarray, num_components: int) -> np.ndarray:
    """Projects `[P, E]` rows on their principal directions and scales them to unit length."""
    x = x - x.mean(axis=0)
    num_components = min(num_components, x.shape[1])
    _, directions = np.linalg.eigh(x.T @ x)
    return unit(x @ directions[:, ::-1][:, :num_components]).astype(np.float32)


def _taxonomy(tags: list[list[str]]) -> tuple[np.ndarray, list[str]]:
    """Derives a category and a subcategory from each POI's tags.

    The category is the POI's most frequent tag. The subcategory is its most frequent tag whose
    share of POIs is from `RARE_TAG` to `COMMON_TAG`, or the category if there is none.
    """
    count = collections.Counter(tag for row in tags for tag in row)
    low, high = RARE_TAG * len(tags), COMMON_TAG * len(tags)
    pairs = []
    for row in tags:
        ordered = sorted(row or ["Other"], key=lambda tag: (-count[tag], tag))
        specific = [tag for tag in ordered if low <= count[tag] <= high]
        pairs.append((ordered[0], (specific or ordered)[0]))
    index = {sub: i for i, sub in enumerate(sorted({sub for _, sub in pairs}))}
    subcategory = np.array([index[sub] for _, sub in pairs], np.int32)
    return subcategory, [f"{top} > {sub}" for top, sub in pairs]
