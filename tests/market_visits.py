"""A folder of real visits for a market of the world `yelp`."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.market.config import MarketConfig

REAL = MarketConfig(
    world="yelp", num_pois=40, num_regions=1, num_users=50, num_sessions=10, num_organic=6
)


def write_sequences(folder, num_items=60, num_users=20):
    """Items of two categories with two subcategories each, and users who stay in one category."""
    rng = np.random.default_rng(0)
    group = np.arange(num_items) % 4
    embedding = np.eye(4)[group] + 0.1 * rng.normal(size=(num_items, 4))
    embedding = np.concatenate([embedding, 0.1 * rng.normal(size=(num_items, 20))], axis=1)
    items = {
        "item_id": np.arange(num_items, dtype=np.int32),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(embedding.astype(np.float16).ravel()), 24
        ),
        "title": [f"Shop {i}" for i in range(num_items)],
        "categories": [["Food", "ABCD"[g]] if g < 3 else ["Shops", "ABCD"[g]] for g in group],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    visits = [[(4 * j + u) % num_items for j in range(2 + u)] for u in range(num_users)]
    sequences = {"user_id": np.arange(num_users, dtype=np.int32), "items": visits}
    schema = pa.schema([("user_id", pa.int32()), ("items", pa.list_(pa.int32()))])
    pq.write_table(pa.table(sequences, schema=schema), folder / "sequences.parquet")
    return embedding.astype(np.float16), visits
