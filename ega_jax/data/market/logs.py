"""Simulates the sessions of a market over time and writes them as an ad log."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax import struct

from ega_jax.data.market import behaviour
from ega_jax.data.market.behaviour import Users
from ega_jax.data.market.clicks import Array, Responses, Truth, responses
from ega_jax.data.market.policy import Shown, cascade
from ega_jax.data.market.recall import Candidates, recall
from ega_jax.data.market.world import Latents, MarketConfig, Supply, World, make_world

START_TIME = 1_700_000_000  # Seconds since 1970.
SPAN = 28 * 86_400  # Seconds covered by a log of any number of sessions.
ROW_GROUP = 4096
ROWS_PER_FILE = 8 * ROW_GROUP


@struct.dataclass
class Chunk:
    """A chunk of simulated sessions."""

    user: jax.Array  # [B] int32, distinct.
    intent: jax.Array  # [B] int32.
    history_poi: jax.Array  # [B, T] int32, before the session.
    history_creative: jax.Array  # [B, T] int32.
    candidates: Candidates
    shown: Shown
    click_poi: jax.Array  # [B, K] bool.
    click_image: jax.Array  # [B, K] bool.
    convert: jax.Array  # [B, K] bool, only where the POI was clicked.


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
        market = dataclasses.asdict(world.config)
        description = {"format": "ad_log", "num_slots": config.num_slots, "market": market}
        (partial / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def simulate(world: World) -> Iterator[Chunk]:
    """Yields the sessions of a market in chunks, and computes one chunk ahead."""
    start_key, key = jax.random.split(jax.random.key(world.config.seed))
    users = behaviour.start(start_key, world)
    size = min(world.config.chunk_size, max(world.config.num_users // 2, 1))
    play = jax.jit(
        _chunk,
        static_argnames=("config", "size"),
        donate_argnames="users",
        compiler_options=behaviour.compiler_options(),
    )
    ready = None
    for i in range(-(-world.config.num_sessions // size)):
        chunk_key = jax.random.fold_in(key, i)
        users, chunk = play(chunk_key, world.latents, world.supply, users, world.config, size)
        if ready is not None:
            yield ready
        ready = chunk
    left = world.config.num_sessions - i * size
    yield jax.tree.map(lambda x: x[:left], ready)


def _chunk(
    key: jax.Array,
    latents: Latents,
    supply: Supply,
    users: Users,
    config: MarketConfig,
    size: int,
) -> tuple[Users, Chunk]:
    """Simulates one session for each of `size` users, sampled by activity without replacement."""
    keys = jax.random.split(key, 6)
    wait = jax.random.exponential(keys[0], supply.log_activity.shape)
    user = jax.lax.top_k(supply.log_activity - jnp.log(wait), size)[1]
    intent = behaviour.drift(keys[1], latents, supply, user, users.intent[user])
    candidates = recall(keys[2], latents, supply, user, intent, config)
    shown = cascade(keys[3], latents, supply, user, candidates, config.num_slots)
    truth = responses(latents, user, intent, shown.items, shown.creatives, shown.is_ad)
    chunk = Chunk(
        user=user,
        intent=intent,
        history_poi=users.history_poi[user],
        history_creative=users.history_creative[user],
        candidates=candidates,
        shown=shown,
        **_feedback(keys[4], truth),
    )
    return _remember(keys[5], latents, supply, users, chunk), chunk


def _feedback(key: jax.Array, truth: Responses) -> dict[str, jax.Array]:
    """Draws clicks, image clicks and conversions, `[B, K]` bool each."""
    draws = jax.random.uniform(key, (3, *truth.click_poi.shape))
    click = draws[0] < truth.click_poi
    return {
        "click_poi": click,
        "click_image": draws[1] < truth.click_image,
        "convert": click & (draws[2] < truth.convert),
    }


def _remember(
    key: jax.Array, latents: Latents, supply: Supply, users: Users, chunk: Chunk
) -> Users:
    """Adds clicked items, and for a share of users a visit elsewhere, to the histories."""
    share_key, visit_key, creative_key = jax.random.split(key, 3)
    clicked = chunk.click_poi | chunk.click_image
    visited = behaviour.visit(visit_key, latents, supply, chunk.user, chunk.intent)
    went = jax.random.uniform(share_key, visited.shape) < behaviour.VISIT_SHARE
    visited = jnp.where(went, visited, -1)[:, None]
    seen = behaviour.pleasing_creative(creative_key, latents, supply, chunk.user, visited)
    poi = jnp.concatenate([jnp.where(clicked, chunk.shown.items, -1), visited], axis=1)
    creative = jnp.concatenate([jnp.where(clicked, chunk.shown.creatives, -1), seen], axis=1)
    history_poi = behaviour.append(chunk.history_poi, poi)
    history_creative = behaviour.append(chunk.history_creative, creative)
    return Users(
        history_poi=users.history_poi.at[chunk.user].set(history_poi),
        history_creative=users.history_creative.at[chunk.user].set(history_creative),
        intent=users.intent.at[chunk.user].set(chunk.intent),
    )


def _write_items(world: World, folder: pathlib.Path) -> None:
    p, r = len(world.poi_embedding), len(world.creative_poi)
    pois = {
        "poi_id": np.arange(p, dtype=np.int32),
        "embedding": _fixed_lists(world.poi_embedding),
        "title": world.titles,
        "category": world.categories,
    }
    creatives = {
        "creative_id": np.arange(r, dtype=np.int32),
        "poi_id": world.creative_poi,
        "embedding": _fixed_lists(world.creative_embedding),
    }
    pq.write_table(pa.table(pois), folder / "pois.parquet")
    pq.write_table(pa.table(creatives), folder / "creatives.parquet")


def _write_sessions(
    world: World, folder: pathlib.Path, progress: Callable[[int, int], None]
) -> None:
    (folder / "sessions").mkdir()
    total, done, files, tables, users, intents = world.config.num_sessions, 0, 0, [], [], []
    for chunk in simulate(world):
        tables.append(_table(jax.device_get(chunk), done, total))
        users.append(np.asarray(chunk.user))
        intents.append(np.asarray(chunk.intent))
        done += len(users[-1])
        if done == total or sum(map(len, tables)) >= ROWS_PER_FILE:
            path = folder / "sessions" / f"part-{files:05d}.parquet"
            rows = pa.concat_tables(tables).combine_chunks()
            pq.write_table(rows, path, row_group_size=ROW_GROUP, use_dictionary=False)
            files, tables = files + 1, []
        progress(done, total)
    Truth(world.latents, np.concatenate(users), np.concatenate(intents)).save(folder)


def _table(chunk: Chunk, first: int, total: int) -> pa.Table:
    """Converts a chunk to the columns of the ad-log format; its first session has id `first`."""
    row = first + np.arange(len(chunk.user), dtype=np.int64)
    columns = {
        "session_id": row,
        "user_id": chunk.user,
        "timestamp": START_TIME + row * SPAN // total,
        "history_poi": _lists(chunk.history_poi, chunk.history_poi >= 0),
        "history_creative": _lists(chunk.history_creative, chunk.history_poi >= 0),
        "ad_poi": _lists(chunk.candidates.ad_poi),
        "ad_bid": _lists(chunk.candidates.ad_bid),
        "organic_poi": _lists(chunk.candidates.organic_poi),
        "shown_poi": _lists(chunk.shown.items),
        "shown_creative": _lists(chunk.shown.creatives),
        "shown_is_ad": _lists(chunk.shown.is_ad),
        "click_poi": _lists(chunk.click_poi),
        "click_image": _lists(chunk.click_image),
        "convert": _lists(chunk.convert),
        "propensity": np.exp(chunk.shown.log_propensity.astype(np.float64)),
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
