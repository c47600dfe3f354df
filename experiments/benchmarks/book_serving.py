"""Serving one request to a random book, with random models of a config's sizes."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ega_jax.auction.settings import SearchSettings
from ega_jax.baselines.settings import Settings
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.mechanism import Mechanism
from ega_jax.setting import part_of
from ega_jax.types import BookRequest
from experiments.benchmarks.auction import Auction, Shape
from experiments.benchmarks.timing import latencies, percentiles


def shape_of(settings: Settings) -> Shape:
    """The sizes of the models that a config trains on its market."""
    market, generator = settings.data.market.config, settings.generator
    return Shape(
        num_codes=settings.tokenizer.num_codes,
        num_slots=market.num_slots,
        history_length=settings.data.history_length,
        num_candidates=market.num_organic,
        num_beams=settings.allocation.num_beams,
        width=generator.width,
        hidden=generator.hidden,
        blocks=generator.decoder_blocks,
        reward_width=settings.reward.width,
        dtype=generator.dtype,
    )


def book_serving_ms(settings: Settings, ads: int, limit_s: float) -> float:
    """The median milliseconds of serving one request at a time, slate, creatives and prices.

    Args:
      settings: give the models' sizes, the organic items, the ads of a slate and the payment rule.
      ads: size of the book.
      limit_s: seconds after which no call starts.
    """
    mechanism, request = with_random_book(Auction(shape_of(settings)), settings, ads)
    limit, rule = settings.data.market.config.max_ads, settings.auction.rule
    times = latencies(lambda: mechanism.allocate(request, rule, max_ads=limit), limit_s)
    return percentiles(times)["p50_ms"]


def with_random_book(
    auction: Auction, settings: Settings, ads: int
) -> tuple[Mechanism, BookRequest]:
    """Returns EGA with random models and a book of `ads` ads, and a request to it."""
    organic, rng = settings.data.market.config.num_organic, auction.rng
    items, shape = auction.items(ads + organic), auction.shape
    ledger = BookLedger(
        np.arange(ads, dtype=np.int32),
        rng.lognormal(size=ads).astype(np.float32),
        [0, ads],
        items.catalogue.poi_codes,
        shape.num_codes,
        num_slots=shape.num_slots,
        token_bid=settings.allocation.token_bid,
        scope=settings.allocation.scope,
    )
    mechanism = auction.mechanism()
    search = part_of(settings.allocation, SearchSettings)
    config = dataclasses.replace(mechanism.system.config, **search)
    system = dataclasses.replace(mechanism.system, items=items, book=ledger.book, config=config)
    history = jnp.asarray(rng.integers(0, ads, (1, shape.history_length), dtype=np.int32))
    request = BookRequest(
        history_poi=history,
        history_creative=items.catalogue.poi_creatives[history, 0],
        organic=jnp.arange(ads, ads + organic, dtype=jnp.int32)[None],
        book=jnp.zeros(1, jnp.int32),
    )
    return dataclasses.replace(mechanism, system=system), request
