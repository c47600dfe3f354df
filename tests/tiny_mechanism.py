"""A mechanism of random models with a narrow search, and requests whose ads stand last."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import CONFIG, LEVERS, K, random_requests, tiny_ega, with_beams

from ega_jax.auction.counterfactuals import NUM_RIVALS
from ega_jax.auction.pricing import PricingConfig
from ega_jax.mechanism import Mechanism
from ega_jax.payment import network
from ega_jax.payment.network import Context, PaymentConfig
from ega_jax.types import Request

PRICING = PricingConfig(hidden=(8, 4), probes=(0.0, 1.0))
ROWS = 24  # Of every batch that tests serve: one compilation for all of them.


@functools.cache
def tiny_mechanism() -> Mechanism:
    """Random networks, moved away from where they start: at one price for all."""
    width = 2 * CONFIG.reward.width
    context = Context(
        *(jnp.zeros((K, size)) for size in (width, NUM_RIVALS + 3, 2)), jnp.zeros(K), jnp.ones(K)
    )

    @jax.jit
    def moved(key: jax.Array):
        fresh = {
            h: network.init(key, PaymentConfig(h, PRICING.hidden), context) for h in network.HEADS
        }
        return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), fresh)

    networks = moved(jax.random.key(1))
    return Mechanism(with_beams(tiny_ega(), 4), networks, PRICING, LEVERS, "threshold")


def requests_with_ads_last(seed: int, rows: int) -> Request:
    """Random requests in which places stand first, then organic items, then ads."""
    found = random_requests(seed, rows)
    flipped = {name: np.flip(getattr(found, name), axis=1) for name in ("item", "is_ad", "bid")}
    return found.replace(**flipped)


def filled_up(request: Request, bids: np.ndarray) -> Request:
    """One request under each bid vector `[R, N]`, R at most `ROWS`, repeated to `ROWS` rows."""
    rows = np.resize(np.arange(len(bids)), ROWS)
    many = jax.tree.map(lambda x: np.repeat(x[None], ROWS, axis=0), request)
    return many.replace(bid=np.float32(bids)[rows])
