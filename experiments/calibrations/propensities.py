"""Whether estimates from a market's log cover the truth: click rates of the uniform policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.data.market import simulation
from ega_jax.data.market.clicks import responses
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.logger import Logger
from ega_jax.data.market.requests import Book
from ega_jax.data.market.scores import make_ranker
from ega_jax.data.market.world import make_world
from ega_jax.evaluation.off_policy import Ratio, inverse_propensity_ctr

DRAWS = 4  # Uniform slates of each request, for the true rate.


def covered(config: MarketConfig, seeds: range) -> int:
    """The number of seeds whose estimate's 95 % interval holds the true click rate."""
    found = [uniform_ctr(dataclasses.replace(config, seed=seed)) for seed in seeds]
    return sum(bool(estimate.low <= true <= estimate.high) for estimate, true in found)


def uniform_ctr(config: MarketConfig) -> tuple[Ratio, float]:
    """The uniform policy's clicks per shown item: estimated from a log, and true."""
    world = make_world(config)
    begin, play, draw = jax.random.split(jax.random.key(config.seed), 3)
    # The seed is no longer needed; markets that differ in nothing else share compiled functions.
    world = dataclasses.replace(world, config=dataclasses.replace(world.config, seed=0))
    state = simulation.begin(begin, world)
    ranker = make_ranker(world.observables, state.users.history_poi)
    logger, rows, true = Logger(ranker, world.config), [], np.zeros(2)
    for number, (span, book, chunk) in enumerate(simulation.simulate(play, world, state, ranker)):
        books = Book(book.poi[chunk.region], book.bid[chunk.region])
        given = chunk.requests, books, chunk.served.organic.poi
        slates = chunk.served.slates
        row = (
            jnp.sum(chunk.feedback.click_poi & (slates.items >= 0), axis=1),
            jnp.sum(slates.items >= 0, axis=1),
            logger.uniform_propensity(*given, slates),
            jnp.prod(chunk.served.propensity, axis=1),
        )
        rows.append(np.stack(row)[:, : span.stop - span.first])
        for i in range(DRAWS):
            slates = logger.uniform_slates(jax.random.fold_in(draw, DRAWS * number + i), *given)
            shown = slates.items, slates.creatives, slates.is_ad
            clicks = responses(world.latents, chunk.situation, *shown).click_poi
            true += float(jnp.sum(clicks)), float(jnp.sum(slates.items >= 0))
    return inverse_propensity_ctr(*np.concatenate(rows, axis=1)), true[0] / true[1]
