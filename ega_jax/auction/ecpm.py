"""Token values by expected revenue: (bid + kappa) times the click rate of an ad alone in a slate.

The paper weighs tokens by bids (21), and a book of ads is indexed by them once for all requests.
Click rates differ by request, so the ads of a book become the request's own list.
"""

import jax
import jax.numpy as jnp

from ega_jax.generation.ad_book import AdBook
from ega_jax.generation.organic_queue import within_reach
from ega_jax.reward import model as reward_model
from ega_jax.reward.model import Items, Memory, RewardConfig
from ega_jax.types import BookRequest, Params, Request


def listed(request: BookRequest, book: AdBook, num_slots: int, scope: str) -> Request:
    """The same request with a list of its own: the available ads of its book, then organic items.

    Args:
      request: one request, without a batch axis.
      book: the forest of books.
      num_slots: `K`.
      scope: of token bids, see `candidates.list_candidates`.

    Returns:
      The request with lists of the size of the largest book and of the organic items in reach.
    """
    place = book.book_start[request.book] + jnp.arange(book.largest, dtype=jnp.int32)
    ad = book.by_poi[jnp.minimum(place, book.num_ads - 1)]
    where = (place < book.book_start[request.book + 1]) & (book.search_bid[ad] >= 0)
    organic = within_reach(request.organic, num_slots, scope)
    join = lambda of_ads, of_organic: jnp.concatenate([of_ads, of_organic.astype(of_ads.dtype)])
    nothing = jnp.zeros(organic.shape)
    return Request(
        history_poi=request.history_poi,
        history_creative=request.history_creative,
        item=join(jnp.where(where, book.poi[ad], -1), organic),
        is_ad=join(where, nothing),
        bid=join(jnp.where(where, book.bid[ad], 0.0), nothing),
        context=request.context,
    )


def relative_click_rates(
    params: Params, config: RewardConfig, items: Items, memory: Memory, ads: jax.Array
) -> jax.Array:
    """Predicted click rates of ads alone in a slate, over their mean.

    An ad is shown with its first creative: the generator's choice for every ad would cost more than
    the search.

    Args:
      params: parameters of the reward model.
      config: sizes of the reward model.
      items: codes and embeddings of the items.
      memory: the encoded request.
      ads: `[N]` int32 POIs, -1 for none.

    Returns:
      `[N]` float32 with mean 1, 0 for none.
    """
    where, owned = ads >= 0, items.catalogue.poi_creatives
    creative = jnp.where(where, owned[ads, 0] if owned.shape[1] else -1, -1)
    slates = ads[:, None], creative[:, None], where[:, None]
    rate = reward_model.predict(params, config, items, memory, *slates).click_poi[:, 0]
    mean = rate.sum() / jnp.maximum(where.sum(), 1)
    return rate / jnp.maximum(mean, jnp.finfo(jnp.float32).tiny)
