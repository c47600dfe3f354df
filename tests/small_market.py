"""A simulated log of a few hundred sessions with its truth, and the items in it."""

import functools
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.logs import write_market
from ega_jax.data.pipeline import open_dataset
from ega_jax.phases.pretraining import owned_creatives
from ega_jax.types import Catalogue

MARKET = MarketConfig(
    num_pois=60, num_users=50, num_sessions=400, num_slots=3, history_length=4, num_ads=5,
    num_organic=6, num_categories=2, num_subcategories=2, latent_dim=4, style_dim=3,
    poi_embedding_dim=8, creative_embedding_dim=6,
)  # fmt: skip
NUM_CODES, NUM_LAYERS = 4, 2


@functools.cache
def small_market() -> tuple[AdLogDataset, Truth]:
    """The log, written once per process, and its truth."""
    folder = Path(tempfile.mkdtemp()) / "market"
    write_market(MARKET, folder)
    return open_dataset(folder, fractions=(0.6, 0.2)), Truth.load(folder)


def catalogue_of(dataset: AdLogDataset) -> Catalogue:
    """Random codes, true owners."""
    rng = np.random.default_rng(0)
    codes = lambda rows: jnp.asarray(rng.integers(0, NUM_CODES, (rows, NUM_LAYERS)), jnp.int32)
    owned = owned_creatives(dataset.creative_poi, MARKET.num_pois)
    return Catalogue(codes(MARKET.num_pois), codes(len(dataset.creative_poi)), jnp.asarray(owned))
