"""Simulates the sessions of a market over time, chunk after chunk.

Histories start with visits that fit each user's intents, so click rates fall while the logger's
slates take their place. The log begins when that is over.

The stages of a chunk are `arrive` (users, intents and places: latents), `serve` (organic lists and
slates: observables alone), `respond` (clicks: latents) and `remember` (histories). A chunk lies
within one day, has equally many sessions of each region, and puts them in random order.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.data.market import ad_books, behaviour, policy
from ega_jax.data.market.behaviour import Users
from ega_jax.data.market.clicks import Responses, Situation, responses
from ega_jax.data.market.config import DAYS, MarketConfig
from ega_jax.data.market.policy import Served
from ega_jax.data.market.requests import Book, Requests, Slates
from ega_jax.data.market.sampling import compiler_options
from ega_jax.data.market.scores import Ranker
from ega_jax.data.market.world import Latents, Observables, World

START_TIME = 1_700_000_000  # Seconds since 1970, the start of the first day.
DAY = 86_400  # Seconds.
SETTLING_DAYS = 14  # Played before the log begins, and not recorded; by then click rates are level.


@struct.dataclass
class State:
    """What changes from chunk to chunk."""

    users: Users
    balance: jax.Array  # [P] float32 money left of each advertiser, currency.


@struct.dataclass
class Feedback:
    """The responses drawn in `B` sessions; all `[B, K]` bool."""

    click_poi: jax.Array
    click_image: jax.Array
    convert: jax.Array  # Only where the POI was clicked.


@struct.dataclass
class Chunk:
    """A chunk of simulated sessions, in the order of the log."""

    region: jax.Array  # [B] int32.
    requests: Requests
    served: Served
    feedback: Feedback
    situation: Situation


@dataclasses.dataclass(frozen=True)
class Span:
    """The rows of the log that a chunk fills."""

    day: int
    first: int
    stop: int


def spans(config: MarketConfig, most: int) -> list[Span]:
    """Returns the rows of each chunk, at most `most`; chunks of a day are of about equal size.

    The rows of a log are evenly spread over its days.
    """
    edges = [-(-day * config.num_sessions // DAYS) for day in range(DAYS + 1)]
    result = []
    for day, (first, stop) in enumerate(itertools.pairwise(edges)):
        parts = -(-(stop - first) // most)
        cuts = [first + (stop - first) * i // max(parts, 1) for i in range(parts + 1)]
        result += [Span(day, a, b) for a, b in itertools.pairwise(cuts)]
    return result


def timestamps(config: MarketConfig, first: int, count: int) -> np.ndarray:
    """Returns the seconds since 1970 of `count` rows of the log, `[count]` int64."""
    row = first + np.arange(count, dtype=np.int64)
    return START_TIME + row * DAYS * DAY // config.num_sessions


def begin(key: jax.Array, world: World) -> State:
    """Draws the users' initial histories and the advertisers' balances."""
    users_key, balance_key = jax.random.split(key)
    balance = ad_books.first_balances(balance_key, world.observables)
    return State(behaviour.start(users_key, world), balance)


def simulate(
    key: jax.Array, world: World, state: State, ranker: Ranker
) -> Iterator[tuple[Span, Book, Chunk]]:
    """Yields the sessions of a market in chunks, after `SETTLING_DAYS` that it does not yield.

    It computes one chunk ahead.

    Args:
      key: random key; other keys give fresh sessions of the same market.
      world: the market.
      state: what `begin` returned; it is used up.
      ranker: features of the items.

    Yields:
      The rows to fill, the books of all regions on that day, `[G, A]`, and at least as many
      sessions as rows; those too many count for nothing.
    """
    played = _play(key, world, state, ranker)
    ready = next(played)
    for part in played:
        yield ready
        ready = part
    yield ready


def _play(
    key: jax.Array, world: World, state: State, ranker: Ranker
) -> Iterator[tuple[Span, Book, Chunk]]:
    """Yields the chunks of `simulate` as soon as they are dispatched."""
    config, observables = world.config, world.observables
    plan = spans(config, _most_rows(world))
    settling = [span for span in plan if span.day < SETTLING_DAYS]
    size = -(-max(span.stop - span.first for span in plan) // config.num_regions)
    options = {"compiler_options": compiler_options()}
    start_day = jax.jit(_start_day, **options)
    play = jax.jit(_chunk, static_argnames=("config", "size"), donate_argnames="state", **options)
    for part_key, part in zip(jax.random.split(key), (settling, plan), strict=True):
        for number, chunks in itertools.groupby(enumerate(part), key=lambda placed: placed[1].day):
            day = number if part is plan else 0  # Late POIs open during the log.
            day_key = jax.random.fold_in(part_key, number)
            balance, book, others = start_day(day_key, observables, state.balance, day)
            state = State(state.users, balance)
            for i, span in chunks:
                hour = timestamps(config, span.first, size * config.num_regions) % DAY / 3600
                rows = jnp.float32(hour), day, span.stop - span.first
                given = (world.latents, observables, ranker, state, book, others, *rows)
                state, chunk = play(jax.random.fold_in(part_key, DAYS + i), *given, config, size)
                if part is plan:
                    yield span, book, chunk


def _most_rows(world: World) -> int:
    """The most sessions of a chunk: at most half of the users of any region come at once."""
    fewest = int(np.sum(world.observables.region_users >= 0, axis=1).min())
    return min(world.config.chunk_size, max(fewest // 2, 1) * world.config.num_regions)


def _start_day(
    key: jax.Array, observables: Observables, balance: jax.Array, day: jax.Array
) -> tuple[jax.Array, Book, jax.Array]:
    """Pays the daily budgets in, and opens the books `[G, A]`; also returns the other open POIs."""
    balance = balance + observables.daily_budget
    book = ad_books.open_books(key, observables, balance, day)
    others = observables.region_organic
    is_open = (others >= 0) & (observables.opening_day[others] <= day)
    return balance, book, jnp.where(is_open, others, -1)


def _chunk(
    key: jax.Array,
    latents: Latents,
    observables: Observables,
    ranker: Ranker,
    state: State,
    book: Book,
    others: jax.Array,
    hour: jax.Array,
    day: jax.Array,
    count: jax.Array,
    config: MarketConfig,
    size: int,
) -> tuple[State, Chunk]:
    """Simulates `size` sessions of each region; the first `count` in random order are kept."""
    keys = jax.random.split(key, 5)
    order = jax.random.permutation(keys[0], len(hour))
    row = jnp.argsort(order)  # Where each session stands in the log.
    requests, situation = behaviour.arrive(
        keys[1], latents, observables, state.users, hour[row], day, size
    )
    served = serve(keys[2], ranker, requests, book, others, config)
    feedback = respond(keys[3], latents, situation, served.slates)
    region = jnp.repeat(jnp.arange(config.num_regions, dtype=jnp.int32), size)
    chunk = Chunk(region, requests, served, feedback, situation)
    state = _remember(keys[4], latents, ranker, state, book, chunk, day, row < count)
    return state, jax.tree.map(lambda x: x[order], chunk)


def serve(
    key: jax.Array,
    ranker: Ranker,
    requests: Requests,
    book: Book,
    others: jax.Array,
    config: MarketConfig,
) -> Served:
    """Serves requests `[G * B]`, region after region, from the books `[G, A]` of the regions."""
    regions = len(others)
    by_region = jax.tree.map(lambda x: x.reshape(regions, -1, *x.shape[1:]), requests)

    def one(key, requests, book, others):
        return policy.serve(key, ranker, requests, book, others, config)

    served = jax.vmap(one)(jax.random.split(key, regions), by_region, book, others)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), served)


def respond(key: jax.Array, latents: Latents, situation: Situation, slates: Slates) -> Feedback:
    """Draws clicks, image clicks and conversions from the truth."""
    truth: Responses = responses(latents, situation, slates.items, slates.creatives, slates.is_ad)
    draws = jax.random.uniform(key, (3, *truth.click_poi.shape))
    click = draws[0] < truth.click_poi
    return Feedback(click, draws[1] < truth.click_image, click & (draws[2] < truth.convert))


def _remember(
    key: jax.Array,
    latents: Latents,
    ranker: Ranker,
    state: State,
    book: Book,
    chunk: Chunk,
    day: jax.Array,
    kept: jax.Array,
) -> State:
    """Adds clicked items, and for a share of users a visit, to histories; charges clicked ads."""
    share_key, visit_key, creative_key = jax.random.split(key, 3)
    slates, requests, users = chunk.served.slates, chunk.requests, state.users
    clicked = chunk.feedback.click_poi | chunk.feedback.click_image
    visited = behaviour.visit(visit_key, latents, chunk.situation, day)
    went = jax.random.uniform(share_key, visited.shape) < behaviour.VISIT_SHARE
    visited = jnp.where(went, visited, -1)[:, None]
    seen = behaviour.pleasing_creative(
        creative_key, latents, ranker.poi_creatives, requests.user, visited
    )
    poi = jnp.concatenate([jnp.where(clicked, slates.items, -1), visited], axis=1)
    creative = jnp.concatenate([jnp.where(clicked, slates.creatives, -1), seen], axis=1)
    user = jnp.where(kept, requests.user, len(users.intent))  # Others are dropped.

    def put(old, new):
        return old.at[user].set(new, mode="drop")

    charged = chunk.feedback.click_poi & slates.is_ad & kept[:, None]
    return State(
        users=Users(
            put(users.history_poi, behaviour.append(requests.history_poi, poi)),
            put(users.history_creative, behaviour.append(requests.history_creative, creative)),
            put(users.intent, chunk.situation.intent),
        ),
        balance=ad_books.charge(state.balance, book, slates.items, charged),
    )
