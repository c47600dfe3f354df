"""Worlds: determinism, structure, and the real one made from a folder of sequences."""

import dataclasses

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data.market.config import SIZES, MarketConfig
from ega_jax.data.market.sampling import Groups, choose, distinct
from ega_jax.data.market.world import make_world
from ega_jax.data.tables import DataError

CONFIG = MarketConfig(num_pois=200, num_users=30, num_sessions=10)
REAL = MarketConfig(
    world="yelp", num_pois=40, num_users=50, num_sessions=10, num_ads=6, num_organic=6
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


@pytest.fixture(scope="module")
def world():
    return make_world(CONFIG)


def arrays(world):
    return jax.tree.map(np.asarray, world)


def test_the_same_seed_gives_the_same_world(world):
    again = make_world(CONFIG)
    jax.tree.map(np.testing.assert_array_equal, arrays(world), arrays(again))
    assert again.titles == world.titles
    other = make_world(dataclasses.replace(CONFIG, seed=1))
    assert not np.allclose(other.poi_embedding, world.poi_embedding)


def test_each_poi_owns_two_to_five_creatives(world):
    table = np.asarray(world.supply.poi_creatives)
    for poi, row in enumerate(table):
        owned = row[row >= 0]
        assert 2 <= len(owned) <= 5
        np.testing.assert_array_equal(owned, np.flatnonzero(world.creative_poi == poi))


def test_latents_cluster_by_category_then_subcategory(world):
    z = np.asarray(world.latents.poi_latent)
    close = z @ z.T
    sub = np.asarray(world.supply.subcategory)
    top = np.array([name.split(" > ")[0] for name in world.categories])
    same_sub = sub[:, None] == sub
    same_top = (top[:, None] == top) & ~same_sub
    other = top[:, None] != top
    np.fill_diagonal(same_sub, False)
    assert close[same_sub].mean() > close[same_top].mean() + 0.1
    assert close[same_top].mean() > close[other].mean() + 0.2


def test_embeddings_tell_of_the_latents_but_are_not_them(world):
    """A nearest neighbour by embedding is of the same subcategory far more often than chance."""
    e = world.poi_embedding
    assert e.shape == (200, 64)
    assert world.creative_embedding.shape == (len(world.creative_poi), 32)
    distance = ((e[:, None] - e) ** 2).sum(axis=-1)
    np.fill_diagonal(distance, np.inf)
    sub = np.asarray(world.supply.subcategory)
    agreement = np.mean(sub[distance.argmin(axis=1)] == sub)
    assert agreement > 0.3


def test_a_config_that_cannot_fill_a_request_is_refused():
    with pytest.raises(ValueError, match=r"world 'mars' is unknown"):
        MarketConfig(world="mars")
    with pytest.raises(ValueError, match="advertisers among 20 POIs"):
        MarketConfig(num_pois=20)
    with pytest.raises(ValueError, match="num_users must be positive, got 0"):
        MarketConfig(num_users=0)
    with pytest.raises(ValueError, match="at least num_slots"):
        MarketConfig(num_organic=3)
    assert [SIZES[name].num_slots for name in ("tiny", "small", "large")] == [5, 6, 10]


def test_the_real_world_keeps_pois_embeddings_and_visits(tmp_path):
    embedding, visits = write_sequences(tmp_path)
    world = make_world(REAL, tmp_path)
    kept = np.array([int(title.split()[1]) for title in world.titles])
    counts = np.bincount(np.concatenate(visits), minlength=60)
    assert counts[kept].min() >= np.delete(counts, kept).max()
    np.testing.assert_allclose(world.poi_embedding, embedding[kept].astype(np.float32))
    remaining = [[np.flatnonzero(kept == i)[0] for i in seq if i in kept] for seq in visits]
    remaining = [seq for seq in remaining if len(seq) >= 3]
    assert (world.config.num_pois, world.config.num_users) == (40, len(remaining))
    for user, seq in enumerate(remaining):
        row = world.visits[user]
        np.testing.assert_array_equal(row[row >= 0], seq[-16:])
        assert row[-1] >= 0
        assert set(np.asarray(world.latents.user_favourite[user])) <= set(seq)
    assert world.categories[0].split(" > ")[0] in ("Food", "Shops")


def test_missing_input_of_the_real_world_is_named(tmp_path):
    with pytest.raises(ValueError, match="needs sequences_folder"):
        make_world(REAL)
    with pytest.raises(DataError, match=r"not a dataset: expected items\.parquet"):
        make_world(REAL, tmp_path)
    write_sequences(tmp_path, num_users=1)
    with pytest.raises(DataError, match="no sequence has 3 items"):
        make_world(REAL, tmp_path)


def test_choose_draws_by_probability_and_never_the_impossible():
    uniform = (np.arange(1000) + 0.5) / 1000
    probabilities = np.tile([0.0, 0.2, 0.0, 0.8, 0.0], (1000, 1))
    drawn = np.bincount(choose(uniform, probabilities), minlength=5)
    np.testing.assert_allclose(drawn / 1000, [0.0, 0.2, 0.0, 0.8, 0.0], atol=0.002)
    edges = np.array([0.0, 1 - 2**-23], np.float32)
    assert choose(edges, probabilities[:2].astype(np.float32)).tolist() == [1, 3]


def test_distinct_members_and_members_of_a_group():
    members = np.arange(100, 191)
    uniform = np.random.default_rng(0).random((2, 50))
    for row in np.asarray(distinct(uniform, members, 91)):
        assert sorted(row) == members.tolist()
    groups = Groups(np.array([4, 2, 9, 7]), np.array([0, 2, 2, 4]))
    drawn = groups.draw(np.array([0.0, 0.9, 0.4, 0.9]), np.array([0, 0, 1, 2]))
    assert drawn.tolist() == [4, 2, 9, 7]
