"""The log: its format, its invariants, its propensities, the calibration."""

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
from market_visits import REAL, write_sequences

from ega_jax.data import schema
from ega_jax.data.books import Books
from ega_jax.data.market import behaviour, logs
from ega_jax.data.market.audience import Audience
from ega_jax.data.market.calibration import auc, calibrate, log_sd, matrix, real_prices
from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.logger import Logger, book_rows
from ega_jax.data.market.requests import Requests, Slates
from ega_jax.data.market.simulation import Feedback
from ega_jax.data.market.world import make_world

CONFIG = MarketConfig(num_pois=300, num_regions=2, num_users=900, num_sessions=3000, num_organic=12)
DAY = 86_400
LISTS = {
    **dict.fromkeys(("history_poi", "history_creative", "organic_poi"), pa.int32()),
    **dict.fromkeys(("shown_poi", "shown_creative"), pa.int32()),
    **dict.fromkeys(("shown_is_ad", "click_poi", "click_image", "convert"), pa.bool_()),
    **dict.fromkeys(("shown_score", "propensity", "context"), pa.float32()),
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


@pytest.fixture(scope="module")
def books(folder):
    """The ads of each book, and their bids, by the book's id."""
    table = pq.read_table(folder / "books").to_pylist()
    return {row["book_id"]: dict(zip(row["ad_poi"], row["ad_bid"], strict=True)) for row in table}


@pytest.fixture(scope="module")
def pois(folder):
    return pq.read_table(folder / "pois.parquet")


def test_columns_and_description(folder, sessions, pois):
    kinds = sessions.schema
    assert {name: kinds.field(name).type.value_type for name in LISTS} == LISTS
    assert kinds.field("context").type == pa.list_(pa.float32(), 7)
    plain = {name: str(kinds.field(name).type) for name in kinds.names if name not in LISTS}
    assert plain == {
        "session_id": "int64",
        "user_id": "int32",
        "timestamp": "int64",
        "book_id": "int32",
        "explored": "bool",
    }
    description = json.loads((folder / "dataset.json").read_text())
    assert description == {
        "format": "ad_log",
        "num_slots": 5,
        "max_ads": 3,
        "market": dataclasses.asdict(CONFIG),
    }
    creatives = pq.read_table(folder / "creatives.parquet")
    assert pois["poi_id"].to_pylist() == list(range(300))
    assert creatives["creative_id"].to_pylist() == list(range(len(creatives)))
    assert pois.schema.field("embedding").type == pa.list_(pa.float32(), 64)
    assert pois["title"][0].as_py()


def test_the_log_is_valid(folder):
    summary = schema.validate(folder)
    assert (summary.num_rows, summary.num_slots, summary.num_books) == (3000, 5, 56)
    assert summary.most_ads <= 75
    assert summary.most_organic == 12


def test_every_session_keeps_the_rules(folder, rows, books, pois):
    owner = pq.read_table(folder / "creatives.parquet")["poi_id"].to_numpy()
    region = pois["region"].to_numpy()
    for i, row in enumerate(rows):
        assert row["session_id"] == i
        shown, is_ad = np.array(row["shown_poi"]), np.array(row["shown_is_ad"])
        book = books[row["book_id"]]
        assert 1 <= len(shown) == len(set(shown)) <= 5
        assert len(shown) == 5 or row["explored"]
        assert is_ad.sum() <= 3
        assert len(set(row["organic_poi"])) == 12
        assert not set(row["organic_poi"]) & set(book)
        assert set(region[[*row["organic_poi"], *book]]) == {row["book_id"] % 2}
        assert set(shown[is_ad]) <= set(book)
        assert list(shown[~is_ad]) == row["organic_poi"][: (~is_ad).sum()]
        np.testing.assert_array_equal(owner[row["shown_creative"]], shown)
        np.testing.assert_array_equal(owner[row["history_creative"]], row["history_poi"])
        assert 4 <= len(row["history_poi"]) <= 16
        assert set(region[row["history_poi"]]) == {row["book_id"] % 2}
        assert all(c or not v for c, v in zip(row["click_poi"], row["convert"], strict=True))
        assert all(0 < p <= 1 for p in row["propensity"])
    times = [row["timestamp"] for row in rows]
    assert times == sorted(times)


def test_books_are_those_of_the_region_and_day(rows, books):
    for row in rows:
        assert row["book_id"] // 2 == (row["timestamp"] - rows[0]["timestamp"]) // DAY
    assert sorted(books) == list(range(56))
    changes = [
        math.log(books[i + 2][ad] / bid)
        for i in range(54)
        for ad, bid in books[i].items()
        if ad in books[i + 2]
    ]
    assert 0.3 * math.sqrt(2) == pytest.approx(np.std(changes), abs=0.03)
    assert min(min(book.values()) for book in books.values()) > 0


def test_ads_run_out_of_money_and_come_back(rows, books):
    """An ad that leaves was clicked the day before; about a tenth of the ads are out."""
    clicked = {}
    for row in rows:
        for poi, is_ad, click in zip(
            row["shown_poi"], row["shown_is_ad"], row["click_poi"], strict=True
        ):
            if is_ad and click:
                clicked.setdefault(row["book_id"], set()).add(poi)
    left, back = 0, 0
    for i in range(54):
        gone = set(books[i]) - set(books[i + 2])
        assert gone <= clicked.get(i, set())
        left += len(gone)
        back += len(set(books[i + 2]) - set(books[i]))
    assert left > 50
    assert back > 50
    size = np.mean([len(book) for i, book in books.items() if i < 46])
    assert 0.75 < size / 68 < 0.97


def test_late_pois_appear_nowhere_before_they_open(rows, books, pois):
    opening = pois["opening_day"].to_numpy()
    assert (opening > 0).sum() == 28
    late_shown = 0
    for row in rows:
        day = row["book_id"] // 2
        seen = [*row["history_poi"], *row["organic_poi"], *row["shown_poi"]]
        assert opening[[*seen, *books[row["book_id"]]]].max() <= day
        late_shown += (opening[row["shown_poi"]] > 0).sum()
    assert late_shown > 50


def test_the_context_shows_hour_surface_and_a_noisy_place(folder, sessions):
    context, truth = matrix(sessions, "context", 7), Truth.load(folder).situation
    clock = sessions["timestamp"].to_numpy() % DAY / 3600
    np.testing.assert_allclose(truth.hour, clock, atol=1e-4)
    angle = 2 * np.pi / 24 * clock
    np.testing.assert_allclose(context[:, 2], np.sin(angle), atol=1e-4)
    np.testing.assert_allclose(context[:, 3], np.cos(angle), atol=1e-4)
    np.testing.assert_array_equal(context[:, 4:].argmax(axis=1), truth.surface)
    assert np.all(context[:, 4:].sum(axis=1) == 1)
    error = 3 * context[:, :2] + 5 - np.asarray(truth.place)
    assert error.std() == pytest.approx(0.3, abs=0.02)


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
    first, again = (pq.read_table(path / "books") for path in (folder, tmp_path / "again"))
    assert first.equals(again)


def test_clicks_follow_the_truth(folder, sessions):
    names = "click_poi", "click_image", "convert"
    feedback = Feedback(*(matrix(sessions, name, 5) for name in names))
    check_likely(folder, shown_in(sessions), feedback)


def test_users_answer_other_slates_by_the_truth(folder, sessions):
    slates = [x[:, ::-1] for x in shown_in(sessions)]
    users, key = Audience.load(folder), jax.random.key(0)
    feedback = users.answer(key, np.arange(len(sessions)), *slates)
    assert not (feedback.convert & ~feedback.click_poi).any()
    check_likely(folder, slates, jax.tree.map(np.asarray, feedback))


def shown_in(sessions):
    items, creatives = (matrix(sessions, f"shown_{name}", 5, -1) for name in ("poi", "creative"))
    return items, creatives, matrix(sessions, "shown_is_ad", 5)


def check_likely(folder, slates, feedback):
    """Observed sums lie within 4 standard deviations of the sums of the true probabilities."""
    true = Truth.load(folder).responses(np.arange(len(slates[0])), *slates)
    pairs = (
        (feedback.click_poi, np.asarray(true.click_poi)),
        (feedback.click_image, np.asarray(true.click_image)),
        (feedback.convert, feedback.click_poi * np.asarray(true.convert)),
    )
    for observed, p in pairs:
        spread = np.sqrt((p * (1 - p)).sum(axis=0))
        assert np.all(np.abs(observed.sum(axis=0) - p.sum(axis=0)) < 4 * spread)


def test_calibration_is_in_its_bands(folder):
    report = calibrate(folder)
    assert 0.04 < report["click_poi.rate"] < 0.09
    assert 0.04 < report["click_image.rate"] < 0.09
    assert 0.75 < report["bid.log_sd"] < 1.05
    assert report["bid.log_sd_within_book"] < report["bid.log_sd"]
    assert report["ads_per_slate"] == pytest.approx(1.9, abs=0.1)
    assert 4.95 < report["items_per_slate"] < 5
    assert report["book.count"] == 56
    below = report["slate.rate_below_similar"]
    assert below == sorted(below, reverse=True)
    assert below[3] < 0.8 * report["slate.rate_below_random"][3]
    assert 0.7 < report["click_poi.auc_bound"] < 0.9


def test_the_report_is_written_and_printed(folder, tmp_path):
    """In a process of its own: another command of this process may define the same flags."""
    (tmp_path / "p.csv").write_text("campaign,price,impressions\na,1,3\na,10,1\n")
    out = tmp_path / "out"
    flags = [
        f"--config.data.path={folder}",
        f"--workdir={tmp_path / 'work'}",
        f"--out={out}",
        "--parts=log",
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
    assert names == {
        "calibration.json",
        *(f"calibration_{x}.png" for x in ("rates", "slate", "bids")),
    }
    assert "click_poi.rate_by_slot" in done.stdout


def test_auc_and_log_sd_by_hand(tmp_path):
    score, label = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auc(score, label) == pytest.approx((1.5 + 2) / 4)
    (tmp_path / "p.csv").write_text("campaign,price,impressions\na,0,9\na,1,3\na,10,1\nb,2,1\n")
    prices = real_prices(tmp_path / "p.csv")
    assert log_sd(*prices["a"]) == pytest.approx(math.log(10) * math.sqrt(3) / 4)
    assert log_sd(*prices["b"]) == 0


def logged(folder, sessions, count):
    """The first `count` sessions as the logger takes them: requests, books, organic items."""
    first = sessions.slice(0, count)
    lists = Books.load(folder)
    number = np.searchsorted(lists.book_id, first["book_id"].to_numpy())

    def history(name):
        values = np.full((count, 16), -1, np.int32)
        for row, ids in zip(values, first[name].to_pylist(), strict=True):
            row[16 - len(ids) :] = ids
        return values

    requests = Requests(
        first["user_id"].to_numpy(),
        history("history_poi"),
        history("history_creative"),
        matrix(first, "context", 7),
    )
    return requests, book_rows(lists, number), matrix(first, "organic_poi", 12)


def test_the_logs_own_columns_give_its_propensities(folder, sessions):
    logger, offer = Logger.load(folder), logged(folder, sessions, 500)
    first = sessions.slice(0, 500)
    ids = (matrix(first, f"shown_{name}", 5, -1) for name in ("poi", "creative"))
    found = logger.propensity(*offer, Slates(*ids, matrix(first, "shown_is_ad", 5)))
    np.testing.assert_allclose(found, matrix(first, "propensity", 5, 1), rtol=1e-3)


def test_uniform_slates_of_a_log(folder, sessions):
    """They have positive propensities, and are shorter and fuller of ads than logged ones."""
    logger, offer = Logger.load(folder), logged(folder, sessions, 500)
    slates = logger.uniform_slates(jax.random.key(0), *offer)
    chances = np.asarray(logger.propensity(*offer, slates))
    assert np.all((chances > 0) & (chances <= 1))
    assert slates.is_ad.sum(axis=1).max() == 3
    length = (slates.items >= 0).sum(axis=1)
    assert length.mean() == pytest.approx(sum(0.95**k for k in range(5)), abs=0.1)
    held = np.asarray(slates.items)[..., None] == np.asarray(offer[1].poi)[:, None]
    assert np.all((held.any(axis=-1) & (slates.items >= 0)) == slates.is_ad)


def test_a_folder_of_no_market_has_no_logger(tmp_path):
    with pytest.raises(FileNotFoundError, match="no market wrote this log"):
        Logger.load(tmp_path)


def test_a_log_of_real_visits_is_valid(tmp_path):
    write_sequences(tmp_path)
    config = dataclasses.replace(REAL, num_sessions=200)
    logs.write_market(config, tmp_path / "log", tmp_path)
    summary = schema.validate(tmp_path / "log")
    assert (summary.num_rows, summary.num_items, summary.embedding_width) == (200, 40, 24)
    assert set(pq.read_table(tmp_path / "log" / "sessions")["user_id"].to_pylist()) <= set(
        range(20)
    )


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
