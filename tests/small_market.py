"""A simulated log of a few hundred sessions with its truth, and the items in it.

Its sessions hold their own lists of ads, those of their books.
"""

import functools
import shutil
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.logs import write_market
from ega_jax.data.pipeline import open_dataset
from ega_jax.phases.pretraining import owned_creatives
from ega_jax.types import Catalogue

MARKET = MarketConfig(
    num_pois=60, num_regions=3, num_users=50, num_sessions=400, num_slots=3, max_ads=2,
    history_length=4, num_organic=6, num_categories=2, num_subcategories=2, latent_dim=4,
    style_dim=3, poi_embedding_dim=8, creative_embedding_dim=6,
)  # fmt: skip
NUM_CODES, NUM_LAYERS = 4, 2


@functools.cache
def small_market() -> tuple[AdLogDataset, Truth]:
    """The log, written once per process, and its truth."""
    folder = Path(tempfile.mkdtemp()) / "market"
    write_market(MARKET, folder)
    hold_own_ads(folder)
    return open_dataset(folder, fractions=(0.6, 0.2, 0.0)), Truth.load(folder)


def hold_own_ads(folder: Path):
    """Puts the ads of each session's book into the session, and removes the books."""
    books = {row.pop("book_id"): row for row in pq.read_table(folder / "books").to_pylist()}
    sessions = pq.read_table(folder / "sessions")
    own = [books[book] for book in sessions["book_id"].to_pylist()]
    sessions = sessions.drop_columns("book_id")
    for name, kind in (("ad_poi", pa.int32()), ("ad_bid", pa.float32())):
        sessions = sessions.append_column(name, pa.array([x[name] for x in own], pa.list_(kind)))
    shutil.rmtree(folder / "books")
    pq.write_table(sessions, folder / "sessions" / "part-00000.parquet")


def catalogue_of(dataset: AdLogDataset) -> Catalogue:
    """Random codes, true owners."""
    rng = np.random.default_rng(0)
    codes = lambda rows: jnp.asarray(rng.integers(0, NUM_CODES, (rows, NUM_LAYERS)), jnp.int32)
    owned = owned_creatives(dataset.creative_poi, MARKET.num_pois)
    return Catalogue(codes(MARKET.num_pois), codes(len(dataset.creative_poi)), jnp.asarray(owned))
