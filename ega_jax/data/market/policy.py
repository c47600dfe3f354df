"""The logging policy: what it offers and shows, and the exact propensity of every slate.

It reads observables alone: the request, the ad book, the organic list and the embeddings. A slate
is made slot by slot. The *logger* shows an ad with probability `AD_RATE` while fewer than `max_ads`
are shown and ads are left, else the next organic item. It draws the ad by a softmax of the scores
of all unused ads of the book (Plackett-Luce), and the creative by a softmax of the scores of the
item's creatives. With probability `explore` the whole slate is *uniform* instead: an ad or an
organic item evenly where both are allowed, an unused ad and a creative uniformly, and after each
slot but the last the slate ends with probability `END`. The served distribution is the mixture.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.requests import Book, Requests, Slates
from ega_jax.data.market.sampling import gumbel
from ega_jax.data.market.scores import Ranker, ad_scores, creative_options, item_scores, query

AD_RATE = 0.4  # Probability of an ad where the logger may show one.
EVEN = 0.5  # Probability of an ad in a uniform slate.
END = 0.05  # Probability that a uniform slate ends after a slot.


@struct.dataclass
class Organic:
    """The organic items of `B` requests."""

    poi: jax.Array  # [B, O] int32, distinct, in upstream order.
    score: jax.Array  # [B, O] float32.


@struct.dataclass
class Served:
    """What was offered and shown in `B` requests."""

    organic: Organic
    slates: Slates
    score: jax.Array  # [B, K] float32 of the items shown.
    propensity: jax.Array  # [B, K] float32 of each slot, given those above; 1 in empty slots.
    explored: jax.Array  # [B] bool, whether the slate is uniform.


def serve(
    key: jax.Array,
    ranker: Ranker,
    requests: Requests,
    book: Book,
    others: jax.Array,
    config: MarketConfig,
) -> Served:
    """Makes the organic lists and the slates of requests of one region.

    Args:
      key: random key.
      ranker: features of the items.
      requests: `B` of them.
      book: the region's ads.
      others: `[O']` POIs that may be organic items, -1 where there is none.
      config: of the market.

    Returns:
      What is offered and shown.
    """
    keys = jax.random.split(key, 3)
    organic = organic_list(keys[0], ranker, requests, others, config.num_organic)
    explored = jax.random.uniform(keys[1], organic.poi.shape[:1]) < config.explore
    slates, score = draw_slates(keys[2], ranker, requests, book, organic, explored, config)
    chances = propensity(ranker, requests, book, organic.poi, slates, config)
    return Served(organic, slates, score, chances, explored)


def organic_list(
    key: jax.Array, ranker: Ranker, requests: Requests, others: jax.Array, num_organic: int
) -> Organic:
    """Ranks POIs by score plus Gumbel noise; the best `num_organic` are the list."""
    score = item_scores(ranker, query(ranker, requests), others)
    noise = gumbel(jax.random.uniform(key, score.shape))
    ranked = jnp.where((others >= 0)[None, :], score + noise, -jnp.inf)
    place = jax.lax.top_k(ranked, num_organic)[1]
    return Organic(others[place], jnp.take_along_axis(score, place, axis=1))


def draw_slates(
    key: jax.Array,
    ranker: Ranker,
    requests: Requests,
    book: Book,
    organic: Organic,
    explored: jax.Array,
    config: MarketConfig,
) -> tuple[Slates, jax.Array]:
    """Draws slates from the logger, or uniformly.

    Args:
      key: random key.
      ranker: features of the items.
      requests: `B` of them.
      book: at least `max_ads` places.
      organic: at least `num_slots` items each.
      explored: `[B]` bool, whether to draw uniformly.
      config: of the market.

    Returns:
      The slates, and the scores of the shown items `[B, K]`.
    """
    num_slots, max_ads = config.num_slots, config.max_ads
    slot_key, ad_key, creative_key = jax.random.split(key, 3)
    score = ad_scores(ranker, query(ranker, requests), book)
    noise = gumbel(jax.random.uniform(ad_key, score.shape))
    logits = jnp.where(explored[:, None] & (score > -jnp.inf), 0.0, score)
    # The largest sums of logit and Gumbel noise are a draw from Plackett-Luce.
    ads = jax.lax.top_k(logits + noise, max_ads)[1]
    is_ad, shown = _pattern(slot_key, book, explored, num_slots, max_ads)
    above = jnp.cumsum(is_ad, axis=1) - is_ad
    ad = jnp.take_along_axis(ads, jnp.minimum(above, max_ads - 1), axis=1)
    rank = jnp.arange(num_slots)[None, :] - above
    at = functools.partial(jnp.take_along_axis, axis=1)
    items = jnp.where(shown, jnp.where(is_ad, book.poi[ad], at(organic.poi, rank)), -1)
    creatives = _creatives(creative_key, ranker, requests, items, explored)
    item_score = jnp.where(is_ad, at(score, ad), at(organic.score, rank))
    return Slates(items, creatives, is_ad & shown), item_score


def uniform_slates(
    key: jax.Array,
    ranker: Ranker,
    requests: Requests,
    book: Book,
    organic: Organic,
    config: MarketConfig,
) -> Slates:
    """Draws slates from the uniform policy, as in the share `explore` of the log."""
    explored = jnp.ones(len(organic.poi), bool)
    return draw_slates(key, ranker, requests, book, organic, explored, config)[0]


def propensity(
    ranker: Ranker,
    requests: Requests,
    book: Book,
    organic_poi: jax.Array,
    slates: Slates,
    config: MarketConfig,
) -> jax.Array:
    """Computes the chance of each slot's content under the served mixture, given the slots above.

    The content of a slot is the item, its creative, and whether the slate ends there. The chance
    of a slot is that of all slots to here, over that of all slots above; both are mixtures.

    Args:
      ranker: features of the items.
      requests: `B` of them.
      book: the ads of all these requests.
      organic_poi: `[B, O]` in upstream order.
      slates: any slates, empty slots on the right.
      config: of the market.

    Returns:
      `[B, K]`, 1 in empty slots, 0 from the first slot that the rules do not allow. The product
      is the propensity of the slate.
    """
    parts = log_propensities(ranker, requests, book, organic_poi, slates, config)
    logger, uniform = (jnp.cumsum(part, axis=1) for part in parts)
    mixed = jnp.logaddexp(jnp.log1p(-config.explore) + logger, jnp.log(config.explore) + uniform)
    above = jnp.pad(mixed[:, :-1], ((0, 0), (1, 0)))
    possible = mixed > -jnp.inf
    ratio = jnp.exp(jnp.where(possible, mixed, 0.0) - jnp.where(possible, above, 0.0))
    return jnp.where(slates.items >= 0, jnp.where(possible, jnp.minimum(ratio, 1.0), 0.0), 1.0)


def uniform_propensity(
    ranker: Ranker,
    requests: Requests,
    book: Book,
    organic_poi: jax.Array,
    slates: Slates,
    config: MarketConfig,
) -> jax.Array:
    """Returns the probability `[B]` of slates under the uniform policy; see `propensity`."""
    return jnp.exp(log_propensities(ranker, requests, book, organic_poi, slates, config)[1].sum(-1))


def log_propensities(
    ranker: Ranker,
    requests: Requests,
    book: Book,
    organic_poi: jax.Array,
    slates: Slates,
    config: MarketConfig,
) -> tuple[jax.Array, jax.Array]:
    """Returns the log chance of each slot, given those above: by the logger, and uniformly.

    The arguments are those of `propensity`; empty slots have log chance 0.
    """
    num_slots = slates.items.shape[1]
    shown = slates.items >= 0
    above = jnp.cumsum(slates.is_ad, axis=1) - slates.is_ad
    num_ads = jnp.sum(book.poi >= 0)
    allowed = above < jnp.minimum(config.max_ads, num_ads)
    score = ad_scores(ranker, query(ranker, requests), book)
    drawn, unused = _ad_chances(score, book.poi, slates)
    rank = jnp.arange(num_slots)[None, :] - above
    is_next = jnp.take_along_axis(organic_poi, rank, axis=1) == slates.items
    creative = _creative_chances(ranker, requests, slates)
    last = shown & ~jnp.pad(shown[:, 1:], ((0, 0), (0, 1)))
    early = jnp.arange(num_slots)[None, :] < num_slots - 1

    def log_chance(rate, ad, creative, end):
        kind = jnp.where(slates.is_ad, rate * allowed, jnp.where(allowed, 1 - rate, 1.0))
        item = jnp.where(slates.is_ad, ad, is_next)
        going = jnp.where(early, jnp.where(last, end, 1 - end), 1.0)
        parts = jnp.stack([kind, item, creative, going])
        return jnp.where(shown, jnp.sum(jnp.log(parts), axis=0), 0.0)

    even = unused / jnp.maximum(num_ads - above, 1)
    return log_chance(AD_RATE, drawn, creative[0], 0.0), log_chance(EVEN, even, creative[1], END)


def _pattern(
    key: jax.Array, book: Book, explored: jax.Array, num_slots: int, max_ads: int
) -> tuple[jax.Array, jax.Array]:
    """Draws which slots are for ads, and which slots are filled; `[B, K]` bool each."""
    ad_uniform, end_uniform = jax.random.uniform(key, (2, num_slots, len(explored)))
    limit = jnp.minimum(max_ads, jnp.sum(book.poi >= 0))
    rate = jnp.where(explored, EVEN, AD_RATE)

    def step(count, uniform):
        is_ad = (uniform < rate) & (count < limit)
        return count + is_ad, is_ad

    is_ad = jax.lax.scan(step, jnp.zeros(len(explored), jnp.int32), ad_uniform)[1].T
    ends = explored[:, None] & (end_uniform.T < END)
    return is_ad, jnp.cumsum(ends, axis=1) - ends == 0


def _creatives(
    key: jax.Array, ranker: Ranker, requests: Requests, items: jax.Array, explored: jax.Array
) -> jax.Array:
    """Draws a creative of each item `[B, K]`, -1 in empty slots."""
    options, score = creative_options(ranker, requests, items)
    logits = jnp.where(explored[:, None, None], 0.0, score)
    noise = gumbel(jax.random.uniform(key, options.shape))
    place = jnp.argmax(jnp.where(options >= 0, logits + noise, -jnp.inf), axis=-1)
    return jnp.take_along_axis(options, place[..., None], axis=-1)[..., 0]


def _ad_chances(score: jax.Array, ad_poi: jax.Array, slates: Slates) -> tuple[jax.Array, jax.Array]:
    """Returns the chance of each slot's ad among the unused ads, and whether it is one of them.

    Args:
      score: `[B, A]`, -inf where there is no ad.
      ad_poi: `[A]`.
      slates: of `K` slots.

    Returns:
      `[B, K]` chances, 0 where the slot has no unused ad, and `[B, K]` bool.
    """
    highest = jnp.max(score, axis=1, keepdims=True, initial=jnp.finfo(score.dtype).min)
    weight = jnp.exp(score - highest)  # 0 where there is no ad.

    def step(left, slot):
        item, is_ad = slot
        mine = (ad_poi[None, :] == item[:, None]) & is_ad[:, None]
        taken = jnp.sum(jnp.where(mine, left, 0.0), axis=1)
        total = jnp.maximum(jnp.sum(left, axis=1), jnp.finfo(left.dtype).tiny)
        return jnp.where(mine, 0.0, left), taken / total

    drawn = jax.lax.scan(step, weight, (slates.items.T, slates.is_ad.T))[1].T
    return drawn, drawn > 0


def _creative_chances(
    ranker: Ranker, requests: Requests, slates: Slates
) -> tuple[jax.Array, jax.Array]:
    """Returns the chance `[B, K]` of each creative by the logger, and uniformly."""
    options, score = creative_options(ranker, requests, slates.items)
    exists = options >= 0
    mine = exists & (options == slates.creatives[..., None])
    chances = jax.nn.softmax(jnp.where(exists, score, jnp.finfo(score.dtype).min), axis=-1)
    even = 1 / jnp.maximum(jnp.sum(exists, axis=-1), 1)
    return jnp.sum(chances, axis=-1, where=mine), jnp.any(mine, axis=-1) * even
