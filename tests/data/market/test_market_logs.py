"""The log: its format, its invariants, the logging policy's propensities, the calibration."""

import collections
import dataclasses
import itertools
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data.market import behaviour, logs, policy, recall
from ega_jax.data.market.calibration import auc, calibrate, log_sd, matrix, real_prices
from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.world import make_world

CONFIG = MarketConfig(num_pois=150, num_users=900, num_sessions=3000, num_ads=10, num_organic=12)
LISTS = {
    **dict.fromkeys(("history_poi", "history_creative", "ad_poi", "organic_poi"), pa.int32()),
    **dict.fromkeys(("shown_poi", "shown_creative"), pa.int32()),
    **dict.fromkeys(("shown_is_ad", "click_poi", "click_image", "convert"), pa.bool_()),
    "ad_bid": pa.float32(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("market") / "log"
    logs.write_market(CONFIG, path)
    return path


@pytest.fixture(scope="module")
def sessions(folder):
    return pq.read_table(folder / "sessions")


@pytest.fixture(scope="module")
def rows(sessions):
    return sessions.to_pylist()


def test_columns_and_description(folder, sessions):
    schema = sessions.schema
    assert {name: schema.field(name).type.value_type for name in LISTS} == LISTS
    plain = {name: str(schema.field(name).type) for name in schema.names if name not in LISTS}
    assert plain == {
        "session_id": "int64",
        "user_id": "int32",
        "timestamp": "int64",
        "propensity": "double",
    }
    description = json.loads((folder / "dataset.json").read_text())
    assert description == {
        "format": "ad_log",
        "num_slots": 5,
        "market": dataclasses.asdict(CONFIG),
    }
    pois, creatives = (pq.read_table(folder / f"{x}.parquet") for x in ("pois", "creatives"))
    assert pois["poi_id"].to_pylist() == list(range(150))
    assert creatives["creative_id"].to_pylist() == list(range(len(creatives)))
    assert pois.schema.field("embedding").type == pa.list_(pa.float32(), 64)
    assert pois["title"][0].as_py()


def test_every_session_keeps_the_rules(folder, rows):
    owner = pq.read_table(folder / "creatives.parquet")["poi_id"].to_numpy()
    for i, row in enumerate(rows):
        assert row["session_id"] == i
        shown, is_ad = np.array(row["shown_poi"]), np.array(row["shown_is_ad"])
        assert len(shown) == len(set(shown)) == 5
        assert 1 <= is_ad.sum() <= 4
        candidates = row["ad_poi"] + row["organic_poi"]
        assert (len(row["ad_poi"]), len(row["organic_poi"])) == (10, 12)
        assert len(set(candidates)) == 22
        assert set(shown[is_ad]) <= set(row["ad_poi"])
        assert list(shown[~is_ad]) == row["organic_poi"][: (~is_ad).sum()]
        np.testing.assert_array_equal(owner[row["shown_creative"]], shown)
        np.testing.assert_array_equal(owner[row["history_creative"]], row["history_poi"])
        assert 4 <= len(row["history_poi"]) <= 16
        assert all(c or not v for c, v in zip(row["click_poi"], row["convert"], strict=True))
        assert 0 < row["propensity"] <= 1
        assert min(row["ad_bid"]) > 0
    times = [row["timestamp"] for row in rows]
    assert times == sorted(times)


def test_histories_grow_by_what_was_clicked_or_visited(rows):
    last, grown = {}, 0
    for row in rows:
        history = list(zip(row["history_poi"], row["history_creative"], strict=True))
        if row["user_id"] in last:
            before, clicked = last[row["user_id"]]
            options = [clicked + visit for visit in ([], history[-1:])]
            assert any((before + new)[-16:] == history for new in options)
            grown += bool(clicked)
        clicks = [a or b for a, b in zip(row["click_poi"], row["click_image"], strict=True)]
        shown = zip(row["shown_poi"], row["shown_creative"], strict=True)
        last[row["user_id"]] = (history, list(itertools.compress(shown, clicks)))
    assert grown > 100


def test_the_same_seed_gives_the_same_log(folder, sessions, tmp_path):
    logs.write_market(CONFIG, tmp_path / "again")
    assert pq.read_table(tmp_path / "again" / "sessions").equals(sessions)


def test_clicks_follow_the_truth(folder, sessions):
    """Observed sums lie within 4 standard deviations of the sums of the true probabilities."""
    names = ("shown_poi", "shown_creative", "shown_is_ad")
    shown = (matrix(sessions, name) for name in names)
    true = Truth.load(folder).responses(np.arange(len(sessions)), *shown)
    clicked = matrix(sessions, "click_poi")
    pairs = (
        (clicked, np.asarray(true.click_poi)),
        (matrix(sessions, "click_image"), np.asarray(true.click_image)),
        (matrix(sessions, "convert"), clicked * np.asarray(true.convert)),
    )
    for observed, p in pairs:
        spread = np.sqrt((p * (1 - p)).sum(axis=0))
        assert np.all(np.abs(observed.sum(axis=0) - p.sum(axis=0)) < 4 * spread)


def test_calibration_is_in_its_bands(folder):
    report = calibrate(folder)
    assert 0.04 < report["click_poi.rate"] < 0.09
    assert 0.04 < report["click_image.rate"] < 0.09
    assert 0.75 < report["bid.log_sd"] < 1.05
    assert 0.06 < report["bid.relevance_correlation"] < 0.18
    assert report["ads_per_slate"] == pytest.approx(2.5, abs=0.1)
    below = report["slate.rate_below_similar"]
    assert below == sorted(below, reverse=True)
    assert below[3] < 0.8 * report["slate.rate_below_random"][3]
    assert 0.7 < report["click_poi.auc_bound"] < 0.9


def test_the_report_is_written_and_printed(folder, tmp_path):
    """In a process of its own: another command of this process may define the same flags."""
    (tmp_path / "p.csv").write_text("campaign,price,impressions\na,1,3\na,10,1\n")
    out = tmp_path / "out"
    flags = [
        f"--data={folder}",
        f"--out={out}",
        "--sessions=500",
        f"--ipinyou={tmp_path / 'p.csv'}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.calibrate", *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads((out / "calibration.json").read_text())
    assert report["sessions"] == 500
    assert report["real.a.log_sd"] == pytest.approx(math.log(10) * math.sqrt(3) / 4)
    names = {path.name for path in out.iterdir()}
    assert names == {"calibration.json", "rates.png", "slate.png", "bids.png"}
    assert "click_poi.rate_by_slot" in done.stdout


def test_auc_and_log_sd_by_hand(tmp_path):
    score, label = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auc(score, label) == pytest.approx((1.5 + 2) / 4)
    (tmp_path / "p.csv").write_text("campaign,price,impressions\na,0,9\na,1,3\na,10,1\nb,2,1\n")
    prices = real_prices(tmp_path / "p.csv")
    assert log_sd(*prices["a"]) == pytest.approx(math.log(10) * math.sqrt(3) / 4)
    assert log_sd(*prices["b"]) == 0


def policy_probability(logits, ads, is_ad):
    """Loop oracle: the chance that `ads` go, in this order, to these slots."""
    most = min(4, len(is_ad) - 1)
    p = 1 / most / math.comb(len(is_ad), sum(is_ad))
    left = list(range(len(logits)))
    for ad in ads:
        total = sum(math.exp(logits[i]) for i in left)
        p *= 0.7 * math.exp(logits[ad]) / total + 0.3 / len(left)
        left.remove(ad)
    return p


@pytest.fixture(scope="module")
def drawn():
    """20,000 slates of 4 slots from 4 ads and 4 organic items (ids from 10), one set of logits."""
    logits = np.tile(np.array([1.0, -0.5, 0.0, 2.0], np.float32), (20_000, 1))
    ids = np.tile(np.arange(4), (20_000, 1))
    draw = jax.jit(policy.draw_slate, static_argnames="num_slots")
    return logits[0], jax.device_get(draw(jax.random.key(0), logits, ids, ids + 10, num_slots=4))


def test_propensities_equal_the_loop_oracle(drawn):
    logits, (items, is_ad, log_p) = drawn
    for b in range(200):
        ads = [i for i in items[b] if i < 10]
        expected = policy_probability(logits, ads, is_ad[b])
        assert math.exp(log_p[b]) == pytest.approx(expected, rel=1e-4)


def test_slates_come_as_often_as_their_propensity_says(drawn):
    """Probabilities of all slates add up to 1, and the draws agree with them."""
    logits, (items, is_ad, _) = drawn
    slates = {}
    for slots in itertools.product([False, True], repeat=4):
        if 1 <= sum(slots) <= 3:
            for ads in itertools.permutations(range(4), sum(slots)):
                slates[slots, ads] = policy_probability(logits, ads, slots)
    assert sum(slates.values()) == pytest.approx(1)
    counts = collections.Counter(
        (tuple(places.tolist()), tuple(row[row < 10].tolist()))
        for row, places in zip(items, is_ad, strict=True)
    )
    assert set(counts) <= set(slates)
    for slate, p in slates.items():
        assert abs(counts[slate] - len(items) * p) < 5 * math.sqrt(len(items) * p)


def test_shortlist_by_hand():
    """POI 4 bids in one of its two places, so it is an ad; POI 5 is worse and left organic."""
    pool = jnp.array([[4, 7, 4, 5, 6, 8]])
    bidding = jnp.array([[False, False, True, True, False, False]])
    utility = jnp.array([[2.0, 1.0, 2.0, 0.5, 3.0, 0.0]])
    ads, ad_utility, organic = recall._shortlist(
        pool, bidding, utility, jnp.zeros((1, 6)), num_ads=1, num_organic=3
    )
    assert ads.tolist() == [[4]]
    assert ad_utility.tolist() == [[2.0]]
    assert organic.tolist() == [[6, 7, 5]]


def test_append_keeps_the_most_recent():
    history = jnp.array([[-1, 1, 2], [3, 4, 5], [-1, -1, 6]])
    new = jnp.array([[-1, 7], [8, 9], [-1, -1]])
    assert behaviour.append(history, new).tolist() == [[1, 2, 7], [5, 8, 9], [-1, -1, 6]]


def test_history_tells_of_interest():
    """What a user visited before is closer to the favourites than a random POI."""
    world = make_world(CONFIG)
    users = behaviour.start(jax.random.key(0), world)
    z = np.asarray(world.latents.poi_latent)
    favourites = z[np.asarray(world.latents.user_favourite)]
    visited, other = z[np.asarray(users.history_poi)[:, -1]], np.roll(z, 1, axis=0)
    nearest = np.einsum("ufl,ul->uf", favourites, visited).max(axis=1).mean()
    chance = np.einsum("ufl,pl->upf", favourites, other).max(axis=2).mean()
    assert nearest > chance + 0.3


def test_nothing_is_left_of_an_interrupted_run(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt(done, total)

    with pytest.raises(KeyboardInterrupt):
        logs.write_market(CONFIG, tmp_path / "log", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(folder):
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(FileExistsError, match="not empty"):
        logs.write_market(CONFIG, folder)
    assert (folder / "dataset.json").read_bytes() == before
