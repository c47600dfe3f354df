"""Token values by expected revenue: (bid + kappa) times the click rate of an item alone in a slate.

The paper weighs tokens by bids (21), and a book of ads is indexed by them once for all requests.
Click rates differ by request, so the ads of a book become the request's own list, and its work
grows with the book. The past bids of such a list also tell what an ad has to bid to compete.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ega_jax.generation.ad_book import UNAVAILABLE, AdBook, Worth
from ega_jax.generation.organic_queue import within_reach
from ega_jax.reward import model as reward_model
from ega_jax.reward.model import Items, Memory, RewardConfig
from ega_jax.types import BookRequest, Params, Request

_PREDICTED_AT_ONCE = 4096  # Items; it bounds the memory that a large book takes.


def as_list(
    request: BookRequest, book: AdBook, num_slots: int, scope: str
) -> tuple[Request, dict[str, jax.Array]]:
    """The same request with a list of its own: the ads of its book, then organic items.

    Args:
      request: one request, without a batch axis.
      book: the forest of books.
      num_slots: `K`.
      scope: of token bids, see `candidates.list_candidates`.

    Returns:
      The request, whose list has the size of the largest book and of the organic items in reach;
      and the ads' `search_bid` and `own_reserve`, as `list_candidates` takes them. Ads that may not
      be shown bid -1.
    """
    place = book.book_start[request.book] + jnp.arange(book.largest, dtype=jnp.int32)
    ad = book.by_poi[jnp.minimum(place, book.num_ads - 1)]
    where = place < book.book_start[request.book + 1]
    is_shown = where & (book.search_bid[ad] >= 0)
    bid = jnp.where(is_shown, book.bid[ad], UNAVAILABLE)
    organic = within_reach(request.organic, num_slots, scope)
    join = lambda of_ads, fill: jnp.append(of_ads, jnp.full(organic.shape, fill, of_ads.dtype))
    listed = Request(
        history_poi=request.history_poi,
        history_creative=request.history_creative,
        item=jnp.append(jnp.where(where, book.poi[ad], -1), organic),
        is_ad=join(where, False),
        bid=join(bid, 0.0),
        context=request.context,
    )
    own = {"search_bid": book.given_bid, "own_reserve": book.reserve}
    return listed, {name: join(x[ad], 0.0) for name, x in own.items()}


def relative_click_rates(
    params: Params,
    config: RewardConfig,
    items: Items,
    memory: Memory,
    item: jax.Array,
    is_ad: jax.Array,
) -> jax.Array:
    """Predicted click rates of items alone in a slate, over the mean of the ads.

    They do not depend on bids. An item is shown with its first creative: a choice for every ad
    would cost more than the search.

    Args:
      params: parameters of the reward model.
      config: sizes of the reward model.
      items: codes and embeddings of the items.
      memory: the encoded request.
      item: `[N]` int32 POIs, -1 for none.
      is_ad: `[N]` bool.

    Returns:
      `[N]` float32, 0 for none; 0 for all without an ad.
    """
    owned = items.catalogue.poi_creatives
    creative = jnp.where(item >= 0, owned[item, 0] if owned.shape[1] else -1, -1)

    def alone(slot: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        slate = (x[None] for x in slot)
        return reward_model.predict(params, config, items, memory, *slate).click_poi[0]

    rate = lax.map(alone, (item, creative, is_ad), batch_size=_PREDICTED_AT_ONCE)
    of_ads = jnp.where(is_ad, rate, 0.0).sum()
    return jnp.where(of_ads > 0, rate * is_ad.sum() / jnp.where(of_ads > 0, of_ads, 1.0), 0.0)


def competing_bids(worth: Worth, past_bid: jax.Array, where: jax.Array, rank: int) -> jax.Array:
    """Bids at which ads match the `rank`-th highest worth of the others, by past bids.

    What an ad bids, now or in the past, does not change its own entry. So the entry can be the ad's
    reserve, and truth stays optimal within a request.

    Args:
      worth: of the ads.
      past_bid: `[N]` float32 currency per click.
      where: `[N]` bool, the ads that compete.
      rank: static, at least 1.

    Returns:
      `[N]` float32 currency per click, at least 0; 0 for all if fewer than `rank` others compete.
    """
    value = jnp.where(where, worth.of(past_bid), 0.0)
    best = lax.top_k(jnp.pad(value, (0, rank + 1)), rank + 1)[0]
    of_others = jnp.where(value >= best[rank - 1], best[rank], best[rank - 1])
    needed = of_others / jnp.maximum(worth.rate, jnp.finfo(jnp.float32).tiny) - worth.kappa
    return jnp.where(of_others > 0, jnp.maximum(needed, 0.0), 0.0)
