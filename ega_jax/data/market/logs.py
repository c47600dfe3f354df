"""Writes the sessions of a market as an ad log."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.market.clicks import Array, Truth
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.logger import Logger
from ega_jax.data.market.requests import Book
from ega_jax.data.market.scores import make_ranker
from ega_jax.data.market.simulation import Chunk, begin, simulate, timestamps
from ega_jax.data.market.world import World, make_world

ROW_GROUP = 4096
ROWS_PER_FILE = 8 * ROW_GROUP


def write_market(
    config: MarketConfig,
    folder: str | pathlib.Path,
    sequences_folder: str | pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a market's log, with its true response model in the subfolder `truth`.

    All files are first written to a temporary folder, so that `folder` is complete or absent.

    Args:
      config: the market's config.
      folder: the folder to make; it may exist if it is empty.
      sequences_folder: for the world `yelp`, a folder in the sequences format.
      progress: called with the number of sessions written so far and the total.

    Raises:
      FileExistsError: the folder is not empty.
      UserError: the world `yelp` has no folder, or the folder holds too little data.
      DataError: the sequences folder breaks a rule of its format.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: not empty, so no market is written there")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        world = make_world(config, sequences_folder)
        _write_items(world, partial)
        _write_sessions(world, partial, progress or (lambda done, total: None))
        _describe(world.config, partial)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _describe(config: MarketConfig, folder: pathlib.Path) -> None:
    description = {
        "format": "ad_log",
        "num_slots": config.num_slots,
        "max_ads": config.max_ads,
        "market": dataclasses.asdict(config),
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")


def _write_items(world: World, folder: pathlib.Path) -> None:
    seen = jax.tree.map(np.asarray, world.observables)
    pois = {
        "poi_id": np.arange(len(seen.poi_embedding), dtype=np.int32),
        "embedding": _fixed_lists(seen.poi_embedding),
        "title": world.titles,
        "category": world.categories,
        "region": seen.poi_region,
        "opening_day": seen.opening_day,
    }
    creatives = {
        "creative_id": np.arange(len(seen.creative_poi), dtype=np.int32),
        "poi_id": seen.creative_poi,
        "embedding": _fixed_lists(seen.creative_embedding),
    }
    pq.write_table(pa.table(pois), folder / "pois.parquet")
    pq.write_table(pa.table(creatives), folder / "creatives.parquet")


def _write_sessions(
    world: World, folder: pathlib.Path, progress: Callable[[int, int], None]
) -> None:
    (folder / "sessions").mkdir()
    total, files, tables, situations = world.config.num_sessions, 0, [], []
    books: dict[int, pa.Table] = {}
    start_key, key = jax.random.split(jax.random.key(world.config.seed))
    state = begin(start_key, world)
    ranker = make_ranker(world.observables, state.users.history_poi)
    for span, book, chunk in simulate(key, world, state, ranker):
        chunk = jax.tree.map(lambda x, n=span.stop - span.first: np.asarray(x)[:n], chunk)
        if span.day not in books:
            books[span.day] = _book_table(book, span.day)
        times = timestamps(world.config, span.first, span.stop - span.first)
        tables.append(_table(chunk, span.first, times, span.day * world.config.num_regions))
        situations.append(chunk.situation)
        if span.stop == total or sum(map(len, tables)) >= ROWS_PER_FILE:
            path = folder / "sessions" / f"part-{files:05d}.parquet"
            rows = pa.concat_tables(tables).combine_chunks()
            pq.write_table(rows, path, row_group_size=ROW_GROUP, use_dictionary=False)
            files, tables = files + 1, []
        progress(span.stop, total)
    (folder / "books").mkdir()
    pq.write_table(pa.concat_tables(books.values()), folder / "books" / "part-00000.parquet")
    Logger(ranker, world.config).save(folder)
    Truth(world.latents, jax.tree.map(lambda *x: np.concatenate(x), *situations)).save(folder)


def _book_table(book: Book, day: int) -> pa.Table:
    """Converts the books `[G, A]` of a day to the columns of the ad-log format."""
    poi, bid = np.asarray(book.poi), np.asarray(book.bid)
    return pa.table(
        {
            "book_id": day * len(poi) + np.arange(len(poi), dtype=np.int32),
            "ad_poi": _lists(poi, poi >= 0),
            "ad_bid": _lists(bid, poi >= 0),
        }
    )


def _table(chunk: Chunk, first: int, times: np.ndarray, first_book: int) -> pa.Table:
    """Converts a chunk to the columns of the ad-log format; its first session has id `first`."""
    requests, served, feedback = chunk.requests, chunk.served, chunk.feedback
    known, shown = requests.history_poi >= 0, served.slates.items >= 0
    columns = {
        "session_id": first + np.arange(len(times), dtype=np.int64),
        "user_id": requests.user,
        "timestamp": times,
        "history_poi": _lists(requests.history_poi, known),
        "history_creative": _lists(requests.history_creative, known),
        "context": _fixed_lists(np.asarray(requests.context)),
        "book_id": chunk.region + np.int32(first_book),
        "organic_poi": _lists(served.organic.poi),
        "shown_poi": _lists(served.slates.items, shown),
        "shown_creative": _lists(served.slates.creatives, shown),
        "shown_is_ad": _lists(served.slates.is_ad, shown),
        "shown_score": _lists(served.score, shown),
        "click_poi": _lists(feedback.click_poi, shown),
        "click_image": _lists(feedback.click_image, shown),
        "convert": _lists(feedback.convert, shown),
        "propensity": _lists(served.propensity, shown),
        "explored": served.explored,
    }
    return pa.table(columns)


def _lists(values: Array, where: Array | None = None) -> pa.ListArray:
    """Returns one list per row of `[B, N]` values, with the values where `where` is true."""
    values = np.asarray(values)
    kept = np.ones(values.shape, bool) if where is None else np.asarray(where)
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values[kept]))


def _fixed_lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
