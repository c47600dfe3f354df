"""Scores of items by observables alone: what the organic ranker and the logger rank by.

The score of an item is a weighted sum of its likeness to the last behaviours, its likeness to the
whole recorded history, and its nearness to the place that the request shows; an ad's also has the
log of its bid. Likeness is the dot product of centred embeddings of unit length. The place of an
item is estimated from its embedding, by a linear read-out that is fitted once to visits before the
log. The sum is linear in features of the item, so one query vector scores all items of a request.
The weights are fixed constants.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.data.market.requests import Book, Requests
from ega_jax.data.market.world import Observables

RECENT, NUM_RECENT = 4.0, 3  # Weight of the likeness to the last behaviours, and their number.
WHOLE = 8.0  # Weight of the likeness to the whole recorded history.
NEAR = 1.0  # Score lost per squared unit between the item's estimated place and the request's.
LOG_BID = 1.0  # Weight of an ad's log bid.
CREATIVE = 4.0  # Weight of a creative's likeness to the creatives of the whole history.
RIDGE = 1.0  # Penalty of the read-out of places, in visits.


@struct.dataclass
class Ranker:
    """What scores read of the items; a function of observables."""

    poi: jax.Array  # [P, E + 3] float32: unit embedding, estimated place, minus its square.
    creative: jax.Array  # [R, E'] float32, unit length.
    poi_creatives: jax.Array  # [P, M] int32, -1 where none.


def make_ranker(observables: Observables, history_poi: jax.Array) -> Ranker:
    """Fits the read-out of places to the initial histories `[U, T]`, and makes the features."""
    embedding = np.asarray(observables.poi_embedding)
    place = _places(embedding, np.asarray(history_poi), np.asarray(observables.user_place))
    square = np.sum(place**2, axis=1, keepdims=True)
    features = np.concatenate([_directions(embedding), place, -square], axis=1)
    return Ranker(
        poi=jnp.asarray(features, jnp.float32),
        creative=jnp.asarray(_directions(np.asarray(observables.creative_embedding))),
        poi_creatives=observables.poi_creatives,
    )


def query(ranker: Ranker, requests: Requests) -> jax.Array:
    """Returns vectors `[B, E + 3]` whose dot products with features are the scores of items.

    A constant of the request, the square of its own place, is left out.
    """
    width = ranker.poi.shape[1] - 3
    z = ranker.poi[:, :width]
    recent = _mean(z, requests.history_poi[:, -NUM_RECENT:])
    liked = RECENT * recent + WHOLE * _mean(z, requests.history_poi)
    place = 2 * requests.context[:, :2]
    return jnp.concatenate([liked, NEAR * place, jnp.full((len(place), 1), NEAR)], axis=1)


def item_scores(ranker: Ranker, queries: jax.Array, items: jax.Array) -> jax.Array:
    """Returns the scores `[B, N]` of items `[N]` for queries `[B, E + 3]`, without bids."""
    return jnp.matmul(queries, ranker.poi[items].T, precision="highest")


def ad_scores(ranker: Ranker, queries: jax.Array, book: Book) -> jax.Array:
    """Returns the scores `[B, A]` of the ads of a book, -inf where there is no ad."""
    has_ad = book.poi >= 0
    log_bid = LOG_BID * jnp.log(jnp.where(has_ad, book.bid, 1.0))
    scores = item_scores(ranker, queries, book.poi) + log_bid[None, :]
    return jnp.where(has_ad[None, :], scores, -jnp.inf)


def creative_options(
    ranker: Ranker, requests: Requests, items: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the creatives `[B, K, M]` of items `[B, K]`, -1 where none, and their scores."""
    options = ranker.poi_creatives[items]
    liked = CREATIVE * _mean(ranker.creative, requests.history_creative)
    scores = jnp.einsum("bkme,be->bkm", ranker.creative[options], liked, precision="highest")
    return jnp.where((items >= 0)[..., None], options, -1), scores


def _mean(vectors: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns the mean vector `[B, E]` of the ids `[B, N]` that are not -1; 0 if there is none."""
    where = (ids >= 0)[..., None]
    total = jnp.sum(vectors[ids] * where, axis=1)
    return total / jnp.maximum(where.sum(axis=1), 1)


def _directions(embedding: np.ndarray) -> np.ndarray:
    """Centres embeddings and scales them to unit length; a zero vector stays zero."""
    centred = embedding - embedding.mean(axis=0)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(norm > 0, norm, 1)


def _places(embedding: np.ndarray, history: np.ndarray, user_place: np.ndarray) -> np.ndarray:
    """Estimates places `[P, 2]` from embeddings, by ridge regression of visitors' places.

    Args:
      embedding: `[P, E]`.
      history: `[U, T]` visits before the log, -1 where none.
      user_place: `[U, 2]` a place of each user.

    Returns:
      `[P, 2]` estimates, for POIs without a visit too.
    """
    visited = history >= 0
    user = np.nonzero(visited)[0]
    features = np.concatenate([embedding, np.ones((len(embedding), 1))], axis=1, dtype=np.float64)
    count = np.bincount(history[visited], minlength=len(features))
    total = np.stack(
        [np.bincount(history[visited], x[user], len(features)) for x in user_place.T], axis=1
    )
    gram = features.T @ (count[:, None] * features) + RIDGE * np.eye(features.shape[1])
    return features @ np.linalg.solve(gram, features.T @ total)
