"""What can be known of the true utility of ads from what a platform sees, and what recall loses.

Features of an ad in a request are its embedding and products of the embedding with the history and
with the context. A linear model of them ranks ads, as the recall stage of a cascade does; a neural
network shows what a large model can tell. Both are fitted to true utilities, so they
bound what models of logged clicks can reach.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ega_jax.data.books import Books
from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.logger import book_rows
from ega_jax.errors import UserError

RECENT = 3  # The last behaviours, which features hold apart from the whole history.
LAYERS = (256, 256)  # Widths of the neural network.
RIDGE = 1.0  # Penalty of the linear model, for standardised features.
VIEWS = ("history", "context", "both")


@dataclasses.dataclass(frozen=True)
class Ads:
    """`D` logged requests, each with `A` ads of its book, -1 where there is none."""

    features: Mapping[str, np.ndarray]  # View -> [D, A, F] float32.
    utility: np.ndarray  # [D, A] float32, log-odds of a click on the ad alone in the first slot.
    value: np.ndarray  # [D, A] float32, bid times click probability, 0 where there is no ad.
    where: np.ndarray  # [D, A] bool.


def ads_of(
    batch: Mapping[str, np.ndarray],
    books: Books,
    truth: Truth,
    embedding: np.ndarray,
    first_creative: np.ndarray,
    drawn: int | None = None,
    seed: int = 0,
) -> Ads:
    """Collects ads of logged requests, with features and true values.

    Args:
      batch: requests of a market's log.
      books: its ad books.
      truth: its true click probabilities.
      embedding: `[P, E]` standardised embeddings of the POIs.
      first_creative: `[P]` a creative of each POI.
      drawn: number of ads to draw from each book; default: all.
      seed: seeds the draws.
    """
    book = book_rows(books, np.asarray(batch["book"]))
    poi, bid = np.asarray(book.poi), np.asarray(book.bid)
    if drawn is not None:
        noise = np.where(poi >= 0, np.random.default_rng(seed).random(poi.shape), 2.0)
        place = np.argsort(noise, axis=1)[:, :drawn]
        poi, bid = (np.take_along_axis(x, place, axis=1) for x in (poi, bid))
    where = poi >= 0
    clicks = clicks_alone(truth, batch["session"], poi, first_creative)
    clicks = np.where(where, clicks, 0.5)
    return Ads(
        features=_features(batch, embedding, poi),
        utility=np.log(clicks / (1 - clicks)),
        value=np.where(where, bid * clicks, 0.0),
        where=where,
    )


def clicks_alone(
    truth: Truth, session: np.ndarray, poi: np.ndarray, first_creative: np.ndarray
) -> np.ndarray:
    """True click probabilities of ads alone in the first slot, with their first creatives.

    Args:
      truth: of a market's log.
      session: `[D]` sessions of the log.
      poi: `[D, A]` POIs of ads, -1 for none.
      first_creative: `[P]` a creative of each POI.

    Returns:
      `[D, A]`; undefined where there is no ad.
    """
    slates = poi.reshape(-1, 1), np.where(poi >= 0, first_creative[poi], -1).reshape(-1, 1)
    rows = np.repeat(np.asarray(session), poi.shape[1])
    clicks = truth.responses(rows, *slates, np.ones((poi.size, 1), bool)).click_poi
    return np.asarray(clicks).reshape(poi.shape)


def _features(
    batch: Mapping[str, np.ndarray], embedding: np.ndarray, poi: np.ndarray
) -> dict[str, np.ndarray]:
    history, item = np.asarray(batch["history_poi"]), embedding[poi]
    taste = [_mean(embedding, x)[:, None] * item for x in (history, history[:, -RECENT:])]
    context = np.asarray(batch["context"])
    around = [context[:, None, i, None] * item for i in range(context.shape[1])]
    fixed = np.broadcast_to(context[:, None], (*poi.shape, context.shape[1]))
    views = {"history": [item, *taste], "context": [item, fixed, *around]}
    views["both"] = views["history"] + views["context"][1:]
    return {name: np.concatenate(x, axis=-1, dtype=np.float32) for name, x in views.items()}


def _mean(embedding: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Mean embedding `[D, E]` of the ids `[D, N]` that are not -1; 0 if there is none."""
    where = (ids >= 0)[..., None]
    return np.sum(embedding[ids] * where, axis=1) / np.maximum(where.sum(axis=1), 1)


def linear_scores(fitted: Ads, view: str, ads: Ads) -> np.ndarray:
    """Utilities `[D, A]` by a ridge regression on one view's features of other ads."""
    x, y = fitted.features[view][fitted.where], fitted.utility[fitted.where]
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    x = (x - mean) / scale
    gram = x.T @ x + RIDGE * np.eye(x.shape[1], dtype=x.dtype)
    weight = np.linalg.solve(gram, x.T @ (y - y.mean()))
    return (ads.features[view] - mean) / scale @ weight


def network_r2(fitted: Ads, view: str, ads: Ads) -> float:
    """Share of the utility's variance that a neural network explains, on other ads.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.neural_network import MLPRegressor
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise UserError("R2 needs scikit-learn: pip install 'ega-jax[convert]'") from error
    scale = StandardScaler().fit(fitted.features[view][fitted.where])
    x, other = (scale.transform(given.features[view][given.where]) for given in (fitted, ads))
    model = MLPRegressor(
        hidden_layer_sizes=LAYERS,
        batch_size=512,
        early_stopping=True,
        max_iter=30,
        random_state=0,
    )
    model.fit(x, fitted.utility[fitted.where])
    return float(model.score(other, ads.utility[ads.where]))


def value_kept(
    score: np.ndarray, ads: Ads, shares: Sequence[float], shown: int
) -> dict[str, float]:
    """The value that a recall stage keeps if all later stages are perfect.

    Args:
      score: `[D, A]` by which recall ranks.
      ads: whole books.
      shares: of each book that recall keeps.
      shown: most ads of a slate.

    Returns:
      Share -> sum of the highest values among the recalled ads, over that among all.
    """
    best = lambda value: -np.sort(-value, axis=1)[:, :shown].sum()
    rank = np.argsort(np.argsort(np.where(ads.where, -score, np.inf), axis=1), axis=1)
    size = ads.where.sum(axis=1, keepdims=True)
    kept = {share: rank < np.ceil(share * size) for share in shares}
    return {
        f"{share:g}": float(best(np.where(k, ads.value, 0.0)) / best(ads.value))
        for share, k in kept.items()
    }
