"""Small datasets in both input formats, as plain lists that a test may spoil before writing."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

NUM_POIS, NUM_CREATIVES, NUM_SLOTS = 12, 24, 3  # POI p owns creatives 2p and 2p + 1.

VECTOR = pa.list_(pa.float32(), 4)
IDS, FLAGS = pa.list_(pa.int32()), pa.list_(pa.bool_())
SESSION_TYPES = {
    "session_id": pa.int64(),
    "user_id": pa.int32(),
    "timestamp": pa.int64(),
    "history_poi": IDS,
    "history_creative": IDS,
    "ad_poi": IDS,
    "ad_bid": pa.list_(pa.float32()),
    "organic_poi": IDS,
    "shown_poi": IDS,
    "shown_creative": IDS,
    "shown_is_ad": FLAGS,
    "click_poi": FLAGS,
    "click_image": FLAGS,
    "convert": FLAGS,
    "propensity": pa.float32(),
}
BOOK_TYPES = {"book_id": pa.int64(), "ad_poi": IDS, "ad_bid": pa.list_(pa.float32())}
TYPES = {
    "poi_id": pa.int32(),
    "creative_id": pa.int32(),
    "item_id": pa.int32(),
    "embedding": VECTOR,
    "image_embedding": VECTOR,
    "title": pa.string(),
    "user_id": pa.int32(),
    "items": IDS,
    "timestamps": pa.list_(pa.int64()),
    **SESSION_TYPES,
    **BOOK_TYPES,
}


def _table(columns, types):
    arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
    return pa.table(arrays)


class AdLog:
    """Columns of an ad log; `write` puts them into a folder."""

    def __init__(self, num_sessions=40, seed=0):
        rng = np.random.default_rng(seed)
        self.types = dict(TYPES)
        self.pois = {
            "poi_id": list(range(NUM_POIS)),
            "embedding": rng.normal(size=(NUM_POIS, 4)).tolist(),
            "title": [f"poi {poi}" for poi in range(NUM_POIS)],
        }
        self.creatives = {
            "creative_id": list(range(NUM_CREATIVES)),
            "poi_id": [creative // 2 for creative in range(NUM_CREATIVES)],
            "embedding": rng.normal(size=(NUM_CREATIVES, 4)).tolist(),
        }
        rows = [self._session(rng, number) for number in range(num_sessions)]
        self.sessions = {name: [row[name] for row in rows] for name in SESSION_TYPES}

    @staticmethod
    def _session(rng, number):
        history = rng.integers(NUM_POIS, size=rng.integers(0, 9)).tolist()
        items = rng.permutation(NUM_POIS).tolist()
        num_ads, num_organic = rng.integers(1, 5), rng.integers(1, 5)
        ads, organic = items[:num_ads], items[num_ads : num_ads + num_organic]
        shown = [ads[0], *organic[: NUM_SLOTS - 1]]
        click = (rng.random(len(shown)) < 0.5).tolist()
        return {
            "session_id": 100 + number,
            "user_id": int(rng.integers(5)),
            "timestamp": 1000 + number // 2,
            "history_poi": history,
            "history_creative": [2 * poi + int(rng.integers(2)) for poi in history],
            "ad_poi": ads,
            "ad_bid": rng.random(num_ads).tolist(),
            "organic_poi": organic,
            "shown_poi": shown,
            "shown_creative": [2 * poi + int(rng.integers(2)) for poi in shown],
            "shown_is_ad": [True] + [False] * (len(shown) - 1),
            "click_poi": click,
            "click_image": [False] * len(shown),
            "convert": click,
            "propensity": float(rng.uniform(0.1, 1.0)),
        }

    def write(self, folder, rows_per_file=25, row_group_size=10, num_slots=NUM_SLOTS):
        (folder / "sessions").mkdir(parents=True)
        pq.write_table(_table(self.pois, self.types), folder / "pois.parquet")
        pq.write_table(_table(self.creatives, self.types), folder / "creatives.parquet")
        (folder / "dataset.json").write_text(json.dumps({"num_slots": num_slots}))
        table = _table(self.sessions, self.types)
        for number, start in enumerate(range(0, table.num_rows, rows_per_file)):
            path = folder / "sessions" / f"part-{number}.parquet"
            part = table.slice(start, rows_per_file)
            pq.write_table(part, path, row_group_size=row_group_size)
        return folder


class BookLog(AdLog):
    """Columns of an ad log whose sessions name one of three ad books."""

    def __init__(self, num_sessions=40, seed=0):
        super().__init__(num_sessions, seed)
        rng = np.random.default_rng(seed)
        pois = [rng.permutation(NUM_POIS)[:size].tolist() for size in (5, 4, 6)]
        self.books = {
            "book_id": [7, 3, 2**40],
            "ad_poi": pois,
            "ad_bid": [np.float32(rng.random(len(ads))).tolist() for ads in pois],
        }
        del self.sessions["ad_poi"], self.sessions["ad_bid"]
        self.sessions["book_id"] = [self.books["book_id"][row % 3] for row in range(num_sessions)]
        for row in range(num_sessions):
            shown = self.sessions["shown_poi"][row]
            shown[0] = next(poi for poi in pois[row % 3] if poi not in shown[1:])
            self.sessions["shown_creative"][row][0] = 2 * shown[0]

    def with_own_ads(self):
        """The same log without books."""
        log = AdLog()
        log.pois, log.creatives = self.pois, self.creatives
        number = {book_id: number for number, book_id in enumerate(self.books["book_id"])}
        books = [number[book_id] for book_id in self.sessions["book_id"]]
        ads = {name: [self.books[name][book] for book in books] for name in ("ad_poi", "ad_bid")}
        log.sessions = {name: (self.sessions | ads)[name] for name in SESSION_TYPES}
        return log

    def write(self, folder, books_per_file=2, **options):
        super().write(folder, **options)
        (folder / "books").mkdir()
        table = _table(self.books, self.types)
        for number, start in enumerate(range(0, table.num_rows, books_per_file)):
            path = folder / "books" / f"part-{number}.parquet"
            pq.write_table(table.slice(start, books_per_file), path)
        return folder


class Sequences:
    """Columns of a sequences dataset; `write` puts them into a folder."""

    def __init__(self, lengths=(1, 2, 3, 4, 9, 6, 3, 5), num_items=15, images=True, seed=0):
        rng = np.random.default_rng(seed)
        self.types = dict(TYPES)
        self.items = {
            "item_id": list(range(num_items)),
            "embedding": rng.normal(size=(num_items, 4)).tolist(),
            "title": [f"item {item}" for item in range(num_items)],
        }
        if images:
            self.items["image_embedding"] = rng.normal(size=(num_items, 4)).tolist()
        self.sequences = {
            "user_id": list(range(len(lengths))),
            "items": [rng.integers(num_items, size=length).tolist() for length in lengths],
            "timestamps": [list(range(length)) for length in lengths],
        }

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(_table(self.items, self.types), folder / "items.parquet")
        pq.write_table(_table(self.sequences, self.types), folder / "sequences.parquet")
        return folder


@pytest.fixture
def ad_log():
    return AdLog()


@pytest.fixture
def make_sequences():
    return Sequences


@pytest.fixture
def make_ad_log():
    return AdLog


@pytest.fixture
def book_log():
    return BookLog()
