"""The ad books of a market: the live ads of each region on a day, and the advertisers' money."""

import jax
import jax.numpy as jnp

from ega_jax.data.market.requests import Book
from ega_jax.data.market.world import Observables

BID_LOG_SD_DAY = 0.3  # Standard deviation of an ad's log bid from day to day.
FIRST_BALANCE = (-0.3, 0.7)  # Range of an advertiser's first balance, in bids.


def first_balances(key: jax.Array, observables: Observables) -> jax.Array:
    """Draws what each advertiser has to spend before the first day, `[P]`, in currency."""
    low, high = FIRST_BALANCE
    share = jax.random.uniform(key, observables.log_bid.shape, minval=low, maxval=high)
    return share * jnp.exp(observables.log_bid)


def open_books(
    key: jax.Array, observables: Observables, balance: jax.Array, day: jax.Array
) -> Book:
    """Makes the books of all regions for a day.

    An ad is live if its POI has opened and its balance is positive. Bids are the typical bids times
    log-normal noise of the day; ads are in random order.

    Args:
      key: random key.
      observables: hold advertisers, typical bids and opening days.
      balance: `[P]` currency.
      day: number of the day.

    Returns:
      Books of `[G, A]` places.
    """
    ads = observables.region_ads
    order_key, bid_key = jax.random.split(key)
    live = (ads >= 0) & (balance[ads] > 0) & (observables.opening_day[ads] <= day)
    order = jnp.argsort(jnp.where(live, jax.random.uniform(order_key, ads.shape), 2.0), axis=1)
    ads, live = (jnp.take_along_axis(x, order, axis=1) for x in (ads, live))
    noise = BID_LOG_SD_DAY * jax.random.normal(bid_key, ads.shape)
    bid = jnp.exp(observables.log_bid[ads] + noise)
    return Book(jnp.where(live, ads, -1), jnp.where(live, bid, 0.0))


def charge(balance: jax.Array, book: Book, items: jax.Array, clicked_ad: jax.Array) -> jax.Array:
    """Takes the bid of each clicked ad from the advertiser's balance.

    Args:
      balance: `[P]` currency.
      book: of all regions, `[G, A]`.
      items: `[B, K]` shown.
      clicked_ad: `[B, K]` bool.

    Returns:
      `[P]` the balances left; the last click of a day may make one negative.
    """
    num_pois = len(balance)
    ads = jnp.where(book.poi >= 0, book.poi, num_pois)
    bid = jnp.zeros(num_pois).at[ads].set(book.bid, mode="drop")
    spent = jnp.where(clicked_ad, bid[items], 0.0)
    return balance.at[items].add(-spent)
