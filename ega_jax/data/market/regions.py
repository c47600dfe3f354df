"""Regions: who may be shown to whom, who buys ads, and which POIs open late."""

import jax
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from ega_jax.data.market.config import ADVERTISER_SHARE, DAYS, FIRST_NEW_DAY, NEW_SHARE

COMPONENTS = 16  # Spectral coordinates by which the POIs of real visits are split.


def co_visit_regions(
    user: np.ndarray, poi: np.ndarray, num_pois: int, num_regions: int
) -> np.ndarray:
    """Splits POIs into regions of equal size, so that a user's visits fall into few of them.

    Args:
      user: `[V]` the user of each visit.
      poi: `[V]` the POI of each visit.
      num_pois: P.
      num_regions: G.

    Returns:
      `[P]` int32 regions.
    """
    if num_regions == 1:
        return np.zeros(num_pois, np.int32)
    by_user, by_poi = np.bincount(user), np.maximum(np.bincount(poi, minlength=num_pois), 1)
    shape = (num_pois, len(by_user))
    weight = 1 / np.sqrt(by_user[user] * by_poi[poi])
    visits = scipy.sparse.csr_array((weight, (poi, user)), shape)
    rank = min(COMPONENTS, min(shape) - 1)
    vectors, values, _ = scipy.sparse.linalg.svds(visits, k=rank, v0=np.ones(min(shape)))
    # Entries of POIs of one group are alike after division; powers silence the weak components.
    coordinates = vectors * values**4 / np.sqrt(by_poi)[:, None]
    region = np.zeros(num_pois, np.int32)
    _split(coordinates, np.arange(num_pois), np.arange(num_regions), region)
    return region


def _split(coordinates: np.ndarray, pois: np.ndarray, regions: np.ndarray, region: np.ndarray):
    """Gives `pois` to `regions`, by halves along the direction of largest spread."""
    if len(regions) == 1:
        region[pois] = regions[0]
        return
    x = coordinates[pois] - coordinates[pois].mean(axis=0)
    direction = np.linalg.eigh(x.T @ x)[1][:, -1]
    order = pois[np.argsort(x @ direction, kind="stable")]
    half = len(regions) // 2
    cut = len(pois) * half // len(regions)
    _split(coordinates, order[:cut], regions[:half], region)
    _split(coordinates, order[cut:], regions[half:], region)


def roles(region: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the advertisers, and the opening days of late POIs, in equal shares of each region.

    Args:
      region: `[P]`.
      rng: random generator.

    Returns:
      `[P]` bool whether the POI buys ads, and `[P]` int32 opening days, 0 for most.
    """
    advertises, opening_day = np.zeros(len(region), bool), np.zeros(len(region), np.int32)
    for members in members_of(region):
        order = rng.permutation(members)
        cut = int(len(order) * ADVERTISER_SHARE)
        advertises[order[:cut]] = True
        for part in (order[:cut], order[cut:]):
            new = part[: int(len(part) * NEW_SHARE)]
            opening_day[new] = rng.integers(FIRST_NEW_DAY, DAYS, len(new))
    return advertises, opening_day


def members_of(region: np.ndarray, where: np.ndarray | None = None) -> list[np.ndarray]:
    """Returns each region's ids, those with `where` true, ascending."""
    kept = np.ones(len(region), bool) if where is None else where
    return [np.flatnonzero((region == g) & kept) for g in range(int(region.max()) + 1)]


def padded(members: list[np.ndarray]) -> np.ndarray:
    """Returns lists of ids as one table `[G, N]` int32, -1 where a list has ended."""
    table = np.full((len(members), max(map(len, members))), -1, np.int32)
    for row, ids in zip(table, members, strict=True):
        row[: len(ids)] = ids
    return table


def device(fields: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Moves arrays to the device, integers as int32 and floats as float32."""
    dtypes = {"i": np.int32, "f": np.float32, "b": np.bool_}
    return {name: jax.numpy.asarray(x, dtypes[x.dtype.kind]) for name, x in fields.items()}
