"""Worlds: determinism, structure, and the real one made from a folder of sequences."""

import dataclasses

import jax
import numpy as np
import pytest
from market_visits import REAL, write_sequences

from ega_jax.data.market.config import SIZES, MarketConfig, MarketSettings
from ega_jax.data.market.regions import co_visit_regions, padded
from ega_jax.data.market.sampling import choose, gumbel
from ega_jax.data.market.world import make_world
from ega_jax.data.tables import DataError

CONFIG = MarketConfig(num_pois=200, num_regions=2, num_users=30, num_sessions=10)


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
    assert not np.allclose(other.observables.poi_embedding, world.observables.poi_embedding)


def test_each_poi_owns_two_to_sixteen_creatives():
    world = make_world(dataclasses.replace(CONFIG, num_pois=2000))
    table = np.asarray(world.observables.poi_creatives)
    count = (table >= 0).sum(axis=1)
    assert (count.min(), np.median(count), count.max()) == (2, 5, 16)
    owner = np.asarray(world.observables.creative_poi)
    for poi in range(0, 2000, 50):
        np.testing.assert_array_equal(table[poi, : count[poi]], np.flatnonzero(owner == poi))


def test_regions_share_pois_advertisers_users_and_late_openings(world):
    seen = arrays(world.observables)
    for region in range(2):
        inside = seen.poi_region == region
        assert inside.sum() == 100
        assert seen.advertises[inside].sum() == 50
        assert set(seen.region_ads[region]) == set(np.flatnonzero(inside & seen.advertises))
        assert set(seen.region_organic[region]) == set(np.flatnonzero(inside & ~seen.advertises))
        late = inside & (seen.opening_day > 0)
        assert late.sum() == 10
        assert seen.opening_day[late].min() >= 23
        assert seen.opening_day[late].max() <= 27
    favourite = np.asarray(world.latents.user_favourite)
    np.testing.assert_array_equal(
        seen.poi_region[favourite], np.repeat(seen.user_region[:, None], 3, axis=1)
    )
    assert not seen.opening_day[favourite].any()


def test_cells_hold_the_open_pois_of_a_region_and_subcategory(world):
    lat, seen = arrays(world.latents), arrays(world.observables)
    subcategory = np.unique(world.categories, return_inverse=True)[1]
    for poi in range(0, 200, 20):
        cell = lat.poi_cell[poi]
        for day in (0, 24, 27):
            first = lat.cell_start[cell]
            found = lat.cell_member[first : first + lat.cell_open[day, cell]]
            same = (seen.poi_region == seen.poi_region[poi]) & (subcategory == subcategory[poi])
            assert set(found) == set(np.flatnonzero(same & (seen.opening_day <= day)))


def test_latents_cluster_by_category_then_subcategory(world):
    z = np.asarray(world.latents.poi_latent)
    close = z @ z.T
    sub = np.unique(world.categories, return_inverse=True)[1]
    top = np.array([name.split(" > ")[0] for name in world.categories])
    same_sub = sub[:, None] == sub
    same_top = (top[:, None] == top) & ~same_sub
    other = top[:, None] != top
    np.fill_diagonal(same_sub, False)
    assert close[same_sub].mean() > close[same_top].mean() + 0.1
    assert close[same_top].mean() > close[other].mean() + 0.2


def test_embeddings_tell_of_the_latents_but_are_not_them(world):
    """A nearest neighbour by embedding is of the same subcategory far more often than chance."""
    e = np.asarray(world.observables.poi_embedding)
    assert e.shape == (200, 64)
    creatives = world.observables.creative_embedding
    assert creatives.shape == (len(world.observables.creative_poi), 32)
    distance = ((e[:, None] - e) ** 2).sum(axis=-1)
    np.fill_diagonal(distance, np.inf)
    sub = np.unique(world.categories, return_inverse=True)[1]
    agreement = np.mean(sub[distance.argmin(axis=1)] == sub)
    assert agreement > 0.3


def test_a_config_that_cannot_fill_a_request_is_refused():
    with pytest.raises(ValueError, match=r"world 'mars' is unknown"):
        MarketConfig(world="mars")
    with pytest.raises(ValueError, match="the 3 advertisers of a region"):
        MarketConfig(num_pois=20)
    with pytest.raises(ValueError, match="exceeds the 9 POIs of a region"):
        MarketConfig(num_pois=60)
    with pytest.raises(ValueError, match=r"max_ads \(5\) must be below num_slots \(5\)"):
        MarketConfig(max_ads=5)
    with pytest.raises(ValueError, match="explore is 2"):
        MarketConfig(explore=2)
    with pytest.raises(ValueError, match="num_users must be positive, got 0"):
        MarketConfig(num_users=0)
    with pytest.raises(ValueError, match="at least num_slots"):
        MarketConfig(num_organic=3)


def test_sizes_books_and_slots():
    sizes = [SIZES[name] for name in ("tiny", "small", "large")]
    assert [(size.num_slots, size.max_ads) for size in sizes] == [(5, 3), (6, 4), (10, 7)]
    assert [size.num_advertisers for size in sizes] == [100, 1000, 10_000]
    assert [MarketSettings(size=name).config for name in SIZES] == sizes
    larger = MarketSettings(size="small", book=5000, num_slots=8).config
    assert (larger.num_pois, larger.num_advertisers, larger.max_ads) == (100_000, 5000, 5)
    smallest = MarketSettings(size="small", book=40).config
    assert (smallest.num_pois, smallest.num_advertisers) == (800, 40)
    assert smallest.num_organic == 36, "of 40 that buy no ads, a tenth opens late"
    with pytest.raises(ValueError, match="the 2 advertisers of a region"):
        _ = MarketSettings(size="small", book=2).config


def test_the_real_world_keeps_pois_and_visits(tmp_path):
    embedding, visits = write_sequences(tmp_path)
    world = make_world(REAL, tmp_path)
    kept = np.array([int(title.split()[1]) for title in world.titles])
    counts = np.bincount(np.concatenate(visits), minlength=60)
    assert counts[kept].min() >= np.delete(counts, kept).max()
    added = np.asarray(world.observables.poi_embedding) - embedding[kept].astype(np.float32)
    assert added.std() < 0.5 * embedding[kept].std()
    opened = set(kept[np.asarray(world.observables.opening_day) == 0])
    remaining = [[np.flatnonzero(kept == i)[0] for i in seq if i in opened] for seq in visits]
    remaining = [seq for seq in remaining if len(seq) >= 3]
    assert (world.config.num_pois, world.config.num_users) == (40, len(remaining))
    for user, seq in enumerate(remaining):
        row = world.visits[user]
        np.testing.assert_array_equal(row[row >= 0], seq[-16:])
        assert row[-1] >= 0
        assert set(np.asarray(world.latents.user_favourite[user])) <= set(seq)
    assert world.categories[0].split(" > ")[0] in ("Food", "Shops")


def test_the_real_worlds_users_stay_in_their_region(tmp_path):
    write_sequences(tmp_path)
    world = make_world(dataclasses.replace(REAL, num_regions=2, num_slots=2, max_ads=1), tmp_path)
    region = np.asarray(world.observables.poi_region)
    assert np.bincount(region).tolist() == [20, 20]
    for row, home in zip(world.visits, np.asarray(world.observables.user_region), strict=True):
        assert set(region[row[row >= 0]]) == {home}


def test_visits_of_the_same_users_make_a_region():
    """Users of four groups of POIs, each of which visits one group."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(4), 25))
    user = np.repeat(np.arange(200), 10)
    poi = np.concatenate([rng.choice(np.flatnonzero(group == u % 4), 10) for u in range(200)])
    region = co_visit_regions(user, poi, 100, 4)
    shares = [np.bincount(group[region == r], minlength=4).max() / 25 for r in range(4)]
    assert np.bincount(region).tolist() == [25] * 4
    assert min(shares) > 0.9
    assert co_visit_regions(user, poi, 100, 1).tolist() == [0] * 100


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


def test_gumbel_noise_draws_from_the_softmax():
    logits = np.log([0.1, 0.2, 0.7])
    uniform = np.random.default_rng(0).random((20_000, 3), np.float32)
    uniform[0] = 0.0
    noise = np.asarray(gumbel(uniform))
    assert np.isfinite(noise).all()
    drawn = np.bincount((logits + noise).argmax(axis=1), minlength=3) / len(noise)
    np.testing.assert_allclose(drawn, [0.1, 0.2, 0.7], atol=0.015)


def test_lists_are_padded_to_a_table():
    table = padded([np.array([3, 1]), np.array([], int), np.array([2])])
    assert table.tolist() == [[3, 1], [-1, -1], [2, -1]]
