"""Fresh sessions of a market as batches."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from small_market import MARKET, small_market

from ega_jax.data import pipeline
from ega_jax.data.market.scores import make_ranker
from ega_jax.data.market.simulation import begin
from ega_jax.data.market.stream import FreshSessions
from ega_jax.data.market.world import make_world

SIZE = 64
T = MARKET.history_length
PER_RUN = MARKET.num_sessions // SIZE


def fresh(seed=1, **changes):
    world = make_world(dataclasses.replace(MARKET, **changes))
    state = begin(jax.random.key(0), world)
    ranker = make_ranker(world.observables, state.users.history_poi)
    return FreshSessions(world, ranker, batch_size=SIZE, history_length=T, seed=seed)


@pytest.fixture(scope="module")
def batches():
    """Those of the first run, and two of the next."""
    return list(itertools.islice(fresh(), PER_RUN + 2))


def test_a_batch_has_the_fields_of_the_log(batches):
    log = pipeline.train_batches(
        small_market()[0], "pretrain", batch_size=SIZE, history_length=MARKET.history_length
    )
    logged = next(iter(log))
    other = set(batches[0]) - set(logged)
    assert other == {"organic"}  # This log has inline lists, where organic items follow ads.
    for batch in batches:
        for name in set(batch) - other:
            assert batch[name].shape == logged[name].shape, name
            assert batch[name].dtype == logged[name].dtype, name
        assert np.all(batch["organic"] >= 0)


def test_sessions_are_valid_and_new_in_every_run(batches):
    contexts = np.concatenate([batch["context"] for batch in batches])
    assert len(np.unique(contexts, axis=0)) == len(contexts)
    for batch in batches:
        assert np.all(batch["shown_is_ad"].sum(axis=1) <= MARKET.max_ads)
        assert not np.any(batch["click_poi"][batch["shown_poi"] < 0])
        assert not np.any(batch["convert"] & ~batch["click_poi"])


def test_the_share_of_uniform_slates_is_that_of_the_config():
    batches = itertools.islice(fresh(explore=0.5), PER_RUN)
    explored = np.concatenate([batch["explored"] for batch in batches])
    assert 0.4 < explored.mean() < 0.6


@pytest.mark.parametrize("given", [0, 2, PER_RUN, PER_RUN + 1])
def test_an_iterator_goes_on_from_its_state(batches, given):
    iterator = iter(fresh())
    iterator.set_state({"batches": given})
    batch = next(iterator)
    assert iterator.get_state() == {"batches": given + 1}
    for name, values in batches[given].items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)


def test_short_histories_are_the_most_recent(batches):
    world, ranker = fresh()._world, fresh()._ranker
    short = next(iter(FreshSessions(world, ranker, batch_size=SIZE, history_length=2, seed=1)))
    np.testing.assert_array_equal(short["history_poi"], batches[0]["history_poi"][:, -2:])


def test_other_seeds_give_other_sessions(batches):
    other = next(iter(fresh(seed=2)))
    assert not np.array_equal(other["context"], batches[0]["context"])


def test_a_batch_larger_than_the_log_is_refused():
    world = make_world(MARKET)
    ranker = make_ranker(world.observables, begin(jax.random.key(0), world).users.history_poi)
    with pytest.raises(ValueError, match="batches of 401 sessions from a market of 400"):
        FreshSessions(world, ranker, batch_size=401, history_length=T, seed=0)
