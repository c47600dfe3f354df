"""The cascade's stages before the auction: the funnel from a book to a few ranked ads.

TIGER recalls ads of the request's book, the two-tower model pre-ranks them, HSTU ranks them, and
Peri-CR chooses creatives in parallel to HSTU. Each stage keeps the best ads by its own score; see
`FunnelSettings`. No stage reads a bid. Organic items have no funnel: their order is given.

A request with a list of its own is a book of that list, so both kinds of requests take one path.
After the funnel a request has `X` places: of the ranked ads by number, then of organic items. All
later stages number candidates by their places.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.system import pick
from ega_jax.baselines.cascade import hstu, peri_cr, two_tower
from ega_jax.baselines.cascade.funnel import FunnelSettings, highest
from ega_jax.baselines.cascade.hstu import HSTUConfig
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig
from ega_jax.baselines.cascade.recall import recall
from ega_jax.baselines.cascade.two_tower import PoiTable, TwoTowerConfig
from ega_jax.generation.ad_book import AdBook
from ega_jax.generation.codes import codes_of
from ega_jax.generation.generator import GeneratorConfig, GeneratorDecoder
from ega_jax.generation.inline_book import inline_book
from ega_jax.generation.organic_queue import listed_organic
from ega_jax.reward.model import Items
from ega_jax.types import AnyRequest, BookRequest, Params, Request

_LAST = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class UpstreamConfig:
    """The static config of the stages before the auction."""

    tiger: GeneratorConfig
    two_tower: TwoTowerConfig
    hstu: HSTUConfig
    peri_cr: PeriCRConfig
    funnel: FunnelSettings


@struct.dataclass
class Upstream:
    """Parameters of the stages before the auction."""

    tiger: Params
    two_tower: Params
    poi_table: PoiTable  # The item tower's outputs.
    hstu: Params
    peri_cr: Params
    config: UpstreamConfig = struct.field(pytree_node=False)


@struct.dataclass
class Ranked:
    """A request's candidates after the funnel, by their places; independent of bids."""

    candidate: jax.Array  # [X] int32 numbers in the request or its book, -1 where none.
    item: jax.Array  # [X] int32 POIs, -1 where none.
    state: jax.Array  # [X, D] user-dependent states of the candidates, from HSTU.
    click: jax.Array  # [X] float32 click probability in the first slot.
    creative: jax.Array  # [X] int32, -1 where none.
    is_ad: jax.Array  # [X] bool, whether the candidate is a ranked ad.
    organic: jax.Array  # [O] int32 places of organic items in upstream order, -1 after the last.


@struct.dataclass
class Passed:
    """A request after the funnel."""

    ranked: Ranked
    bid: jax.Array  # [X] float32 currency per click, 0 for organic items.
    reserve: jax.Array  # [X] float32 least bid and price of each ad, 0 for organic items.
    recalled: jax.Array  # [R] int32 ads that TIGER recalls, likeliest first, -1 after the last.


@struct.dataclass
class Offer:
    """A request as the funnel reads it: a history, a context, a book of ads, and organic items."""

    history: tuple[jax.Array, jax.Array]  # [T] int32 each, POIs and creatives.
    context: jax.Array | None  # [X] float32, as logged; None if models read none.
    book: AdBook
    root: jax.Array  # [] int32 number of the book in its forest.
    organic: jax.Array  # [O] int32 candidates in upstream order, -1 after the last.
    organic_poi: jax.Array  # [O] int32.


def offer_of(
    request: AnyRequest, forest: AdBook | None, items: Items, config: UpstreamConfig
) -> Offer:
    """Finds the book and the organic items of one request.

    Organic items whose POI is also an ad of the book are left out. Of the others, only those stay
    that a slate may reach: one more than it has slots, as one may be absent.

    Args:
      request: one request without a batch axis.
      forest: the books that a request may name.
      items: the item features.
      config: the sizes.
    """
    if isinstance(request, BookRequest):
        assert forest is not None, "a request names a book, and the system has none"
        book, root, poi = forest, request.book, request.organic
        number = book.num_ads + jnp.arange(poi.size, dtype=jnp.int32)
    else:
        book, root = _own_book(request, items, config.tiger.num_codes), jnp.int32(0)
        number, poi = listed_organic(request.item, (request.item >= 0) & ~request.is_ad)
    stays = (poi >= 0) & (book.ads_of(poi, root) < 0)
    order = jnp.argsort(~stays, stable=True)[: config.hstu.num_slots + 1]
    keep = lambda x: jnp.where(stays, x, -1)[order]
    history = request.history_poi, request.history_creative
    return Offer(history, request.context, book, root, keep(number), keep(poi))


def _own_book(request: Request, items: Items, num_codes: int) -> AdBook:
    """The book of a request's own list of ads; recall reads no bids and no lists of inner nodes."""
    return inline_book(
        codes_of(items.catalogue.poi_codes, request.item),
        request.item,
        request.bid,
        request.is_ad & (request.item >= 0),
        eligible=jnp.ones(request.item.shape, bool),
        smoothing=1.0,
        num_listed=1,
        token_bid="max",
        scope="prefix",
        num_codes=num_codes,
    )


def run_funnel(
    models: Upstream, items: Items, request: AnyRequest, forest: AdBook | None = None
) -> Passed:
    """Runs the stages before the auction on one request.

    Args:
      models: the stages.
      items: the item features.
      request: one request without a batch axis; its bids change nothing but `Passed.bid`.
      forest: the books that a request may name.
    """
    offer = offer_of(request, forest, items, models.config)
    recalled = _recalled(models, items, offer)
    ranked = _ranked(models, items, offer, _preranked(models, items, offer, recalled))
    of_ads = lambda x: jnp.where(ranked.is_ad, pick(x, ranked.candidate, 0.0), 0.0)
    return Passed(ranked, of_ads(offer.book.bid), of_ads(offer.book.reserve), recalled)


def _recalled(models: Upstream, items: Items, offer: Offer) -> jax.Array:
    """The ads `[R]` that TIGER recalls."""
    decoder = GeneratorDecoder(models.tiger, models.config.tiger)
    memory = decoder.encode(*offer.history, items.catalogue, offer.context)
    return recall(decoder, memory, offer.book, offer.root, models.config.funnel)


def _preranked(models: Upstream, items: Items, offer: Offer, ads: jax.Array) -> jax.Array:
    """The best of recalled ads `[R]` by the two-tower model."""
    config = models.config
    if config.funnel.num_preranked >= ads.size:
        return ads
    model = models.two_tower, config.two_tower, items, models.poi_table
    poi = pick(offer.book.poi, ads, 0)
    score = two_tower.scores(*model, *offer.history, poi, offer.context)
    return ads[highest(ads, score, config.funnel.num_preranked)]


def _ranked(models: Upstream, items: Items, offer: Offer, ads: jax.Array) -> Ranked:
    """The best of pre-ranked ads `[Q]` by HSTU, by number, and the organic items."""
    config, history, context = models.config, offer.history, offer.context
    candidate = jnp.concatenate([ads, offer.organic])
    item = jnp.concatenate([pick(offer.book.poi, ads, -1), offer.organic_poi])
    place, slot = jnp.arange(item.size), jnp.zeros_like(item)
    is_ad = (place < ads.size) & (item >= 0)
    creative = peri_cr.choose(models.peri_cr, config.peri_cr, items, *history, item, context)
    shown = item, creative, is_ad, slot, context
    ranking = hstu.rank(models.hstu, config.hstu, items, *history, *shown)
    best = highest(ads, ranking.click[: ads.size], config.funnel.num_ranked)
    best = best[jnp.argsort(jnp.where(ads[best] >= 0, ads[best], _LAST))]
    kept = jnp.concatenate([best, place[ads.size :]])
    there = jnp.arange(best.size, kept.size)
    return Ranked(
        candidate=candidate[kept],
        item=item[kept],
        state=ranking.state[kept],
        click=ranking.click[kept],
        creative=creative[kept],
        is_ad=is_ad[kept],
        organic=jnp.where(offer.organic >= 0, there, -1),
    )
