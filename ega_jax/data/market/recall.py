"""The candidates of a request: ads with bids, and organic items in upstream order."""

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.data.market.behaviour import favourite
from ega_jax.data.market.clicks import CLICK, affinity
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.sampling import distinct
from ega_jax.data.market.world import Latents, Supply

INTENT_SHARE = 0.6  # Share of related POIs that match the intent; the rest match a favourite.
BIDDING_SHARE = 0.5  # Share of related advertisers that bid; the others have spent their budget.
UPSTREAM_NOISE = 1.0  # Standard deviation of the upstream ranker's error in the utility.
VALUE_LOG_SD_REQUEST = 0.3  # Standard deviation of a click's log value over an ad's requests.
VALUE_LOG_RELEVANCE = 0.1  # Log value per standard deviation of relevance in the request.


@struct.dataclass
class Candidates:
    """The candidates of `B` requests."""

    ad_poi: jax.Array  # [B, A] int32, distinct.
    ad_bid: jax.Array  # [B, A] float32, the true value of a click, in currency.
    ad_utility: jax.Array  # [B, A] float32, true utility without creative and slate effects.
    organic_poi: jax.Array  # [B, O] int32, distinct, disjoint from the ads, best first.


def recall(
    key: jax.Array,
    latents: Latents,
    supply: Supply,
    user: jax.Array,
    intent: jax.Array,
    config: MarketConfig,
) -> Candidates:
    """Recalls related and random POIs, and keeps the best by a noisy utility.

    Args:
      key: random key.
      latents: the world's latents.
      supply: the world's supply.
      user: `[B]` int32.
      intent: `[B]` int32 POI ids.
      config: holds the numbers of candidates.

    Returns:
      Full lists of distinct candidates.
    """
    pool_key, noise_key, bid_key = jax.random.split(key, 3)
    pool, bidding = _pool(pool_key, latents, supply, user, intent, config)
    utility = affinity(latents, user, intent, pool).utility(CLICK)
    noise = UPSTREAM_NOISE * jax.random.normal(noise_key, pool.shape)
    ad_poi, ad_utility, organic_poi = _shortlist(
        pool, bidding, utility, noise, config.num_ads, config.num_organic
    )
    return Candidates(ad_poi, _bids(bid_key, supply, ad_poi, ad_utility), ad_utility, organic_poi)


def _pool(
    key: jax.Array,
    latents: Latents,
    supply: Supply,
    user: jax.Array,
    intent: jax.Array,
    config: MarketConfig,
) -> tuple[jax.Array, jax.Array]:
    """Recalls related POIs, random advertisers and random POIs `[B, M]`, and whether each bids."""
    b, a, n = len(user), config.num_ads, config.num_ads + config.num_organic
    related_key, random_key = jax.random.split(key)
    by_intent, liking, place, spending = jax.random.uniform(related_key, (4, b, n))
    liked = favourite(liking, latents, user)
    like = jnp.where(by_intent < INTENT_SHARE, intent[:, None], liked)
    related = supply.pois.draw(place, supply.subcategory[like])
    uniform = jax.random.uniform(random_key, (2, 2, b))
    buyers = distinct(uniform[0], supply.advertisers, a)
    anyone = distinct(uniform[1], jnp.arange(len(supply.advertises)), n)
    spends = supply.advertises[related] & (spending < BIDDING_SHARE)
    bidding = [spends, jnp.ones(buyers.shape, bool), jnp.zeros(anyone.shape, bool)]
    return jnp.concatenate([related, buyers, anyone], axis=1), jnp.concatenate(bidding, axis=1)


def _shortlist(
    pool: jax.Array,
    bidding: jax.Array,
    utility: jax.Array,
    noise: jax.Array,
    num_ads: int,
    num_organic: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Takes the best bidding POIs of a pool as ads, and the best of the rest as organic items.

    Args:
      pool: `[B, M]` int32 POI ids; at least A distinct ones bid, at least A + O are distinct.
      bidding: `[B, M]` bool; a POI counts as bidding if any of its entries bids.
      utility: `[B, M]` float32.
      noise: `[B, M]` float32, added for ranking.
      num_ads: `A`.
      num_organic: `O`.

    Returns:
      The ads `[B, A]`, their utilities, and the organic items `[B, O]`, each best first.
    """
    place = 2 * pool + ~bidding
    place, utility, score = jax.lax.sort((place, utility, utility + noise), num_keys=1)
    poi, bidding = place // 2, place % 2 == 0
    first = jnp.pad(poi[:, 1:] != poi[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    score = jnp.where(first, score, -jnp.inf)
    _, ad = jax.lax.top_k(jnp.where(bidding, score, -jnp.inf), num_ads)
    score = score.at[jnp.arange(len(pool))[:, None], ad].set(-jnp.inf)
    _, organic = jax.lax.top_k(score, num_organic)
    ad_poi, organic_poi = (jnp.take_along_axis(poi, i, axis=1) for i in (ad, organic))
    return ad_poi, jnp.take_along_axis(utility, ad, axis=1), organic_poi


def _bids(key: jax.Array, supply: Supply, ad_poi: jax.Array, utility: jax.Array) -> jax.Array:
    """Draws the value of a click for each ad `[B, A]`; it increases slightly with relevance."""
    centred = utility - utility.mean(axis=1, keepdims=True)
    relevance = centred / jnp.maximum(centred.std(axis=1, keepdims=True), 1e-6)
    noise = VALUE_LOG_SD_REQUEST * jax.random.normal(key, ad_poi.shape)
    return jnp.exp(supply.log_value[ad_poi] + noise + VALUE_LOG_RELEVANCE * relevance)
