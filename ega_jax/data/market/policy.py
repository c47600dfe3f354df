"""The logging policy: a noisy eCPM cascade with exploration and known propensities.

The policy puts 1 to 4 ads into random slots. It draws the ads one by one by predicted eCPM; the
prediction is the true utility plus noise. The other slots take the organic items in upstream order.
With probability 0.3 each choice of an ad or a creative is uniformly random. So every full slate of
1 to 4 ads that keeps the organic order has a positive propensity; slates with no ad, only ads or
more than 4 ads have propensity 0.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.data.market.clicks import creative_effect
from ega_jax.data.market.recall import Candidates
from ega_jax.data.market.sampling import below, choose
from ega_jax.data.market.world import Latents, Supply

MAX_ADS = 4
SWAP = 0.3  # Probability that a choice is uniformly random.
PREDICTION_NOISE = 0.5  # Standard deviation of the noise in the predicted utility.
AD_SHARPNESS = 3.0  # Logit of an ad per unit of its predicted log eCPM.
CREATIVE_SHARPNESS = 2.0  # Logit of a creative per unit of its predicted effect.


@struct.dataclass
class Shown:
    """The slates of `B` sessions."""

    items: jax.Array  # [B, K] int32 POI ids.
    creatives: jax.Array  # [B, K] int32, of those POIs.
    is_ad: jax.Array  # [B, K] bool.
    log_propensity: jax.Array  # [B] float32, given the ranker's predictions.


def cascade(
    key: jax.Array,
    latents: Latents,
    supply: Supply,
    user: jax.Array,
    candidates: Candidates,
    num_slots: int,
) -> Shown:
    """Predicts utilities with noise, then draws a slate and its creatives from the policy.

    Args:
      key: random key.
      latents: the world's latents.
      supply: the world's supply.
      user: `[B]` int32.
      candidates: at least `num_slots` ads and as many organic items.
      num_slots: `K`.

    Returns:
      Full slates with their propensities.
    """
    slate_key, noise_key, creative_key = jax.random.split(key, 3)
    b, a = candidates.ad_poi.shape
    noise = jax.random.normal(noise_key, (b, a + num_slots * supply.poi_creatives.shape[1]))
    noise *= PREDICTION_NOISE
    log_ecpm = jnp.log(candidates.ad_bid) + jax.nn.log_sigmoid(candidates.ad_utility + noise[:, :a])
    items, is_ad, log_slate = draw_slate(
        slate_key, AD_SHARPNESS * log_ecpm, candidates.ad_poi, candidates.organic_poi, num_slots
    )
    options = supply.poi_creatives[items]
    effect = creative_effect(latents, user, options.reshape(b, -1)) + noise[:, a:]
    logits = CREATIVE_SHARPNESS * effect.reshape(options.shape)
    uniform = jax.random.uniform(creative_key, items.shape)
    choice, log_creative = explore(uniform, logits, options >= 0)
    creatives = jnp.take_along_axis(options, choice[..., None], axis=-1)[..., 0]
    return Shown(items, creatives, is_ad, log_slate + log_creative.sum(axis=1))


def draw_slate(
    key: jax.Array, logits: jax.Array, ad_poi: jax.Array, organic_poi: jax.Array, num_slots: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the slots of the ads, then the ads; organic items fill the other slots in order.

    Args:
      key: random key.
      logits: `[B, A]` logits of the ads.
      ad_poi: `[B, A]` int32.
      organic_poi: `[B, O]` int32, best first.
      num_slots: `K`.

    Returns:
      items `[B, K]`, is_ad `[B, K]`, and the log-probability `[B]` of that slate.
    """
    most = min(MAX_ADS, num_slots - 1)
    uniform = jax.random.uniform(key, (1 + num_slots + most, len(logits)))
    is_ad, log_propensity = _ad_slots(uniform[0], uniform[1 : 1 + num_slots].T, most)

    def pick(where, uniform):
        choice, log_pick = explore(uniform, logits, where)
        return where & (jnp.arange(where.shape[1])[None, :] != choice[:, None]), (choice, log_pick)

    everyone = jnp.ones(logits.shape, bool)
    _, (choices, log_picks) = jax.lax.scan(pick, everyone, uniform[1 + num_slots :])
    ads = jnp.take_along_axis(ad_poi, choices.T, axis=1)
    used = jnp.arange(most)[None, :] < is_ad.sum(axis=1, keepdims=True)
    log_propensity += jnp.sum(log_picks.T, axis=1, where=used)
    ad = jnp.take_along_axis(ads, jnp.maximum(jnp.cumsum(is_ad, axis=1) - 1, 0), axis=1)
    organic = jnp.take_along_axis(
        organic_poi, jnp.maximum(jnp.cumsum(~is_ad, axis=1) - 1, 0), axis=1
    )
    return jnp.where(is_ad, ad, organic), is_ad, log_propensity


def explore(uniform: jax.Array, logits: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws along the last axis from a mixture of a softmax and a uniform distribution.

    Args:
      uniform: `[...]` in [0, 1).
      logits: `[..., N]`.
      where: `[..., N]` bool, the entries that can be drawn.

    Returns:
      The choice `[...]` and its log-probability `[...]`.
    """
    greedy = jax.nn.softmax(logits, axis=-1, where=where)
    probabilities = (1 - SWAP) * greedy + SWAP * where / jnp.sum(where, axis=-1, keepdims=True)
    choice = choose(uniform, probabilities)
    drawn = jnp.take_along_axis(probabilities, choice[..., None], axis=-1)[..., 0]
    return choice, jnp.log(drawn)


def _ad_slots(
    count_uniform: jax.Array, slot_uniform: jax.Array, most: int
) -> tuple[jax.Array, jax.Array]:
    """Draws the number of ads and their slots: `[B, K]` bool, and its log-probability `[B]`."""
    num_slots = slot_uniform.shape[1]
    count = 1 + below(count_uniform, most)
    rank = jnp.argsort(jnp.argsort(slot_uniform))
    arrangements = jnp.array([math.comb(num_slots, n) for n in range(most + 1)], jnp.float32)
    return rank < count[:, None], -jnp.log(most * arrangements[count])
