"""What the platform does depends on observables and keys alone, not on latents."""

import inspect
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.data.market import ad_books, behaviour, logger, policy, requests, scores, simulation
from ega_jax.data.market.clicks import Situation, Truth, responses
from ega_jax.data.market.config import TINY, MarketConfig
from ega_jax.data.market.requests import Book
from ega_jax.data.market.scores import make_ranker
from ega_jax.data.market.world import Latents, World, make_world

HIDDEN = (Latents, World, Situation, Truth, simulation.State, behaviour.Users)
BLIND = (ad_books, logger, policy, requests, scores)
CONFIG = MarketConfig(num_pois=120, num_regions=2, num_users=300, num_sessions=600, num_organic=8)
PERMUTED = {
    **dict.fromkeys(("poi_latent", "poi_place", "poi_quality", "poi_peak"), "poi"),
    **dict.fromkeys(("creative_style", "creative_appeal"), "creative"),
    **dict.fromkeys(("user_favourite", "user_weight", "user_taste"), "user"),
}


def functions():
    """All functions and methods of the modules that see no latents."""
    for module in BLIND:
        for part in vars(module).values():
            if isinstance(part, type) and part.__module__ == module.__name__:
                methods = vars(part).values()
                yield from (f for f in methods if isinstance(f, types.FunctionType))
            elif inspect.isroutine(inspect.unwrap(part) if callable(part) else part):
                yield inspect.unwrap(part)
    yield from (simulation.serve, simulation._start_day)


def test_no_function_of_the_platform_takes_latents():
    names = set()
    for function in functions():
        if function.__module__.startswith("ega_jax.data.market."):
            names.add(function.__name__)
            hints = typing.get_type_hints(function)
            assert not set(hints.values()) & set(HIDDEN), function
            assert not {"latents", "world", "situation", "truth"} & set(hints), function
    assert {"open_books", "organic_list", "draw_slates", "propensity", "query", "serve"} <= names
    assert {"uniform_slates", "charge", "make_ranker"} <= names


@pytest.fixture(scope="module")
def market():
    world = make_world(CONFIG)
    state = simulation.begin(jax.random.key(0), world)
    ranker = make_ranker(world.observables, state.users.history_poi)
    key = jax.random.key(1)
    _, book, others = simulation._start_day(key, world.observables, state.balance, 25)
    return world, state, ranker, book, others


def permuted(latents):
    """Gives each POI, creative and user the latents of another one; arrivals stay the same."""
    rng = np.random.default_rng(5)
    order = {
        "poi": rng.permutation(len(latents.poi_latent)),
        "creative": rng.permutation(len(latents.creative_style)),
        "user": rng.permutation(len(latents.user_taste)),
    }
    changed = {name: getattr(latents, name)[order[kind]] for name, kind in PERMUTED.items()}
    return latents.replace(**changed)


def test_candidates_books_and_slates_stay_when_latents_are_permuted(market):
    world, state, ranker, book, others = market
    play = jax.jit(simulation._chunk, static_argnames=("config", "size"))
    hour = np.linspace(0, 23, 100, dtype=np.float32)

    def chunk(latents):
        given = (world.observables, ranker, state, book, others, hour, 25, 100)
        return play(jax.random.key(2), latents, *given, CONFIG, 50)[1]

    first, second = chunk(world.latents), chunk(permuted(world.latents))
    for name in ("region", "requests", "served"):
        pair = jax.device_get((getattr(first, name), getattr(second, name)))
        jax.tree.map(np.testing.assert_array_equal, *pair)
    assert not np.array_equal(first.feedback.click_poi, second.feedback.click_poi)
    assert not np.array_equal(first.situation.intent, second.situation.intent)


def test_a_book_has_the_open_ads_with_money_in_random_order(market):
    seen = market[0].observables
    balance = np.where(np.arange(120) % 10 == 0, -1.0, 1.0)
    books = ad_books.open_books(jax.random.key(0), seen, balance, 24)
    later = ad_books.open_books(jax.random.key(0), seen, balance, 27)
    live = np.asarray(seen.advertises) & (balance > 0) & (np.asarray(seen.opening_day) <= 24)
    for region in range(2):
        ads = np.asarray(books.poi[region])
        count = (ads >= 0).sum()
        assert np.all(ads[:count] >= 0)
        assert ads[:count].tolist() != sorted(ads[:count])
        inside = np.asarray(seen.poi_region) == region
        assert set(ads[:count]) == set(np.flatnonzero(live & inside))
        gap = np.log(books.bid[region][:count]) - seen.log_bid[ads[:count]]
        assert 0.1 < gap.std() < 0.5
    assert (later.poi >= 0).sum() > (books.poi >= 0).sum()


def test_clicked_ads_pay_their_bids():
    book = Book(np.array([[2, 0, -1], [3, -1, -1]]), np.array([[0.5, 2.0, 0.0], [1.0, 0.0, 0.0]]))
    items = np.array([[2, 1], [2, -1], [3, 0]])
    clicked = np.array([[True, False], [True, False], [False, True]])
    left = ad_books.charge(jnp.ones(4), book, items, clicked)
    assert left.tolist() == [-1.0, 1.0, 0.0, 1.0]


def test_chunks_cover_the_log_and_lie_within_a_day():
    config = MarketConfig(num_sessions=5000)
    plan = simulation.spans(config, 60)
    assert [span.first for span in plan[1:]] == [span.stop for span in plan[:-1]]
    assert (plan[0].first, plan[-1].stop) == (0, 5000)
    for span in plan:
        rows = span.stop - span.first
        assert 0 < rows <= 60
        times = simulation.timestamps(config, span.first, rows)
        days = (times - simulation.START_TIME) // simulation.DAY
        assert set(days) == {span.day}
    assert len(simulation.spans(MarketConfig(num_sessions=10), 60)) == 10


def click_rates(config):
    """The true click rate of the slates shown in each of the two halves of a log."""
    world = make_world(config)
    state = simulation.begin(jax.random.key(0), world)
    ranker = make_ranker(world.observables, state.users.history_poi)
    sums = np.zeros((2, 2))
    for span, _, chunk in simulation.simulate(jax.random.key(1), world, state, ranker):
        slates = chunk.served.slates
        shown = slates.items, slates.creatives, slates.is_ad
        clicks = responses(world.latents, chunk.situation, *shown).click_poi
        half = int(span.day >= simulation.DAYS // 2)
        sums[half] += float(clicks.sum()), float((slates.items >= 0).sum())
    return sums[:, 0] / sums[:, 1]


def test_click_rates_are_level_when_the_log_begins(monkeypatch):
    first, second = click_rates(TINY)
    assert abs(first / second - 1) < 0.02
    monkeypatch.setattr(simulation, "SETTLING_DAYS", 0)
    first, second = click_rates(TINY)
    assert first / second > 1.04, "without days to settle they fall"


def test_places_are_read_out_of_embeddings(market):
    world, _, ranker, _, _ = market
    place = np.asarray(ranker.poi[:, -3:-1])
    true = np.asarray(world.latents.poi_place)
    for axis in range(2):
        assert np.corrcoef(place[:, axis], true[:, axis])[0, 1] > 0.3
    np.testing.assert_allclose(ranker.poi[:, -1], -(place**2).sum(axis=1), rtol=1e-5)
