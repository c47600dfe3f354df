"""Generator and reward model small enough to list every slate of a request, on random requests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.auction.ega import EGA, EGAConfig
from ega_jax.auction.system import Levers
from ega_jax.generation import generator
from ega_jax.generation.generator import GeneratorConfig, GeneratorDecoder
from ega_jax.reward import model as reward_model
from ega_jax.reward.model import Items, RewardConfig
from ega_jax.types import Catalogue, Request
from experiments.benchmarks.auction import Shape

P, R, W, C, K, T, N = 10, 14, 4, 2, 3, 4, 6
GENERATOR = GeneratorConfig(
    num_codes=W, num_layers=C, num_slots=K, history_length=T, width=8, num_heads=2, hidden=8,
    encoder_blocks=1, decoder_blocks=1,
)  # fmt: skip
REWARD = RewardConfig(
    num_codes=W, num_layers=C, num_slots=K, history_length=T, width=8, num_heads=2, hidden=8,
    blocks=1,
)  # fmt: skip
SHAPE = Shape(  # Of the benchmarks' random models.
    num_codes=16, num_slots=3, history_length=4, num_candidates=8, num_beams=4, width=16, hidden=16,
    blocks=1, reward_width=8,
)  # fmt: skip
ALL_BEAMS = 200  # More than a request of N candidates has slates.
CONFIG = EGAConfig(reward=REWARD, num_beams=ALL_BEAMS)
LEVERS = Levers(
    alpha=jnp.float32(1.2), beta=jnp.float32(2.0), kappa=jnp.float32(0.0), reserve=jnp.float32(0.0),
    max_ads=jnp.int32(99), min_gap=jnp.int32(0), bid_free=jnp.asarray(False),
)  # fmt: skip


def levers(**changes):
    """Levers with some changed, of the same types."""
    typed = {name: jnp.asarray(v, getattr(LEVERS, name).dtype) for name, v in changes.items()}
    return dataclasses.replace(LEVERS, **typed)


@functools.cache
def tiny_ega() -> EGA:
    """Random parameters; the generator's scaled up so that predictions differ."""
    rng = np.random.default_rng(0)
    owner = np.concatenate([np.arange(P), rng.integers(0, P, R - P)])
    owned = np.full((P, 1 + R - P), -1, np.int32)
    for creative, poi in enumerate(owner):
        owned[poi, np.argmax(owned[poi] < 0)] = creative
    catalogue = Catalogue(
        poi_codes=jnp.asarray(rng.integers(0, W, (P, C)), jnp.int32),
        creative_codes=jnp.asarray(rng.integers(0, W, (R, C)), jnp.int32),
        poi_creatives=jnp.asarray(owned),
    )
    items = Items(
        catalogue=catalogue,
        poi_embedding=jnp.asarray(rng.normal(size=(P, 6)), jnp.float32),
        creative_embedding=jnp.asarray(rng.normal(size=(R, 5)), jnp.float32),
    )
    larger = lambda x: x * 2.0 if x.ndim > 1 else x
    with jax.numpy_rank_promotion("allow"):
        params = jax.jit(lambda key: generator.init(key, GENERATOR, catalogue))(jax.random.key(0))
        reward = jax.jit(lambda key: reward_model.init(key, REWARD, items))(jax.random.key(1))
    decoder = GeneratorDecoder(jax.tree.map(larger, params), GENERATOR)
    return EGA(reward=reward, items=items, decoder=decoder, config=CONFIG)


def with_beams(system, num_beams):
    """The same system with a search of another width."""
    return dataclasses.replace(
        system, config=dataclasses.replace(system.config, num_beams=num_beams)
    )


def random_requests(seed, rows):
    """A batch of requests with few candidates, ads first, some of equal bids."""
    rng = np.random.default_rng(seed)
    item = np.stack([rng.permutation(P)[:N] for _ in range(rows)])
    item = np.where(np.arange(N) < rng.integers(1, N + 1, (rows, 1)), item, -1)
    is_ad = (np.arange(N) < rng.integers(0, N + 1, (rows, 1))) & (item >= 0)
    bid = np.where(is_ad, rng.choice([0.5, 1.0, 2.0, 5.0], (rows, N)), 0.0)
    return Request(
        history_poi=rng.integers(-1, P, (rows, T)).astype(np.int32),
        history_creative=rng.integers(-1, R, (rows, T)).astype(np.int32),
        item=item.astype(np.int32),
        is_ad=is_ad,
        bid=bid.astype(np.float32),
    )


def batch_of(requests, **more):
    """The fields of requests as batches of a log hold them: without a context if there is none."""
    return {name: x for name, x in vars(requests).items() if x is not None} | more


def one(requests, row):
    """One request of a batch."""
    return jax.tree.map(lambda x: x[row], requests)


@jax.jit
def serve(system, requests, levers):
    """Prepared requests, allocations and menus of a batch."""

    def serve_one(request):
        prepared = system.prepare(request, levers)
        return prepared, *system.allocate(prepared)

    return jax.vmap(serve_one)(requests)


@jax.jit
def alone(system, prepared, requests):
    """Creatives and click probabilities `[B, N]` of all candidates, each alone in a slate."""
    of_one = lambda prepared, request: system.alone(prepared, request.item, request.is_ad)
    return jax.vmap(of_one)(prepared, requests)


def without(requests, row, candidate):
    """A batch in which one candidate is not there; others keep their places."""
    gone = np.zeros(requests.item.shape, bool)
    gone[row, candidate] = candidate >= 0
    return requests.replace(
        item=np.where(gone, -1, requests.item),
        is_ad=requests.is_ad & ~gone,
        bid=np.where(gone, np.float32(0), requests.bid),
    )


def with_bid(requests, row, candidate, bid):
    """A batch in which one ad bids another amount."""
    bids = np.array(requests.bid, np.float32)
    bids[row, candidate] = bid
    return requests.replace(bid=bids)
