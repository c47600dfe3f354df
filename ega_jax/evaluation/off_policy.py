"""What a log tells of the uniform policy, and what a reward model says of its slates.

The logger of a simulated market shows every slate that the rules allow with a known, positive
probability. So the click rate of the uniform policy can be estimated from the log alone, and
compared with the truth. Ratios of sums have intervals by linearisation, over sessions.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.data.books import Books
from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.logger import Logger, book_rows
from ega_jax.data.market.requests import Book, Requests, Slates
from ega_jax.phases.requests import real_rows
from ega_jax.phases.reward import batch_predictor
from ega_jax.reward.model import Items, RewardConfig
from ega_jax.types import Params, Slate

NORMAL_95 = 1.96  # Standard deviations of a two-sided interval.

Batch = Mapping[str, Any]


class Ratio(NamedTuple):
    """A ratio of two sums over sessions, with its 95 % interval."""

    value: float
    low: float
    high: float


def ratio(over: np.ndarray, under: np.ndarray) -> Ratio:
    """Returns `sum(over) / sum(under)` of independent sessions `[D]`, with its 95 % interval."""
    over, under = np.asarray(over, np.float64), np.asarray(under, np.float64)
    value = over.sum() / under.sum()
    error = np.sqrt(np.sum((over - value * under) ** 2)) / under.sum()
    return Ratio(float(value), float(value - NORMAL_95 * error), float(value + NORMAL_95 * error))


def inverse_propensity_ctr(
    clicks: np.ndarray, shown: np.ndarray, wanted: np.ndarray, logged: np.ndarray
) -> Ratio:
    """Estimates the clicks per shown item of a policy from the log of another one.

    Args:
      clicks: `[D]` clicks in each session.
      shown: `[D]` items shown.
      wanted: `[D]` probability of the shown slate under the policy.
      logged: `[D]` its propensity in the log.

    Returns:
      The self-normalised estimate.
    """
    weight = np.asarray(wanted, np.float64) / np.asarray(logged, np.float64)
    return ratio(weight * clicks, weight * shown)


def predicted_over_true_clicks(
    params: Params,
    config: RewardConfig,
    items: Items,
    batches: Iterable[Batch],
    logger: Logger,
    books: Books,
    truth: Truth,
    key: jax.Array | None,
) -> Ratio:
    """Compares a reward model with the truth on slates of logged requests.

    Args:
      params: the reward model's parameters.
      config: its config.
      items: its item features.
      batches: batches of the market's log; blank rows are skipped.
      logger: the policy of the log.
      books: its ad books.
      truth: its true click probabilities.
      key: random key of uniformly drawn slates; None: the slates that the log shows.

    Returns:
      Predicted over true clicks; 1 if the log is not confounded and the model is calibrated.
    """
    predict, predicted, true = batch_predictor(config, items), [], []
    names = ("shown_poi", "shown_creative", "shown_is_ad")
    for number, batch in enumerate(batches):
        shown = tuple(batch[name] for name in names)
        if key is not None:
            drawn = logger.uniform_slates(jax.random.fold_in(key, number), *offer_of(batch, books))
            shown = tuple(map(np.asarray, (drawn.items, drawn.creatives, drawn.is_ad)))
        found = predict(params, dict(batch) | dict(zip(names, shown, strict=True)))
        real = real_rows(batch)
        predicted.append(np.asarray(found.click_poi).sum(-1)[real])
        known = truth.responses(np.asarray(batch["session"]), *shown)
        true.append(np.asarray(known.click_poi).sum(-1)[real])
    return ratio(np.concatenate(predicted), np.concatenate(true))


def effective_share(propensity: np.ndarray) -> float:
    """How large a share of a log tells of a policy that always serves the same slate to a request.

    A logged session tells of the policy where it shows the policy's slate; inverse-propensity
    estimates weigh it by `1 / p`. With expected sums, Kish's effective sample size of these weights
    is `D^2 / sum(1 / p)` of `D` sessions. Slates that the log can never show tell nothing.

    Args:
      propensity: `[D]` probability in the log of the policy's slate.

    Returns:
      The effective sample size over `D`: the harmonic mean of the propensities if all are above 0.

    Examples:
      >>> effective_share(np.array([0.5, 0.25])), effective_share(np.array([0.5, 0.0]))
      (0.3333333333333333, 0.25)
    """
    possible = np.asarray(propensity, np.float64)
    possible = possible[possible > 0]
    if not len(possible):
        return 0.0
    return float(len(possible) ** 2 / np.sum(1 / possible) / len(propensity))


def overlap_by_slots(chance: np.ndarray) -> list[float]:
    """How large a share of a log tells of slates of which only the first slots have to be alike.

    Args:
      chance: `[D, K]` propensities of the slots of the slates, whose product is that of the slate.

    Returns:
      `effective_share` for the first slot, the first two, ..., all K.
    """
    return [effective_share(p) for p in np.cumprod(chance, axis=1).T]


def slate_chances(logger: Logger, batch: Batch, books: Books, slate: Slate) -> np.ndarray:
    """How likely the policy of a log shows slates.

    Args:
      logger: the policy of the log.
      batch: of the log.
      books: its ad books.
      slate: served to the requests of the batch.

    Returns:
      `[B, K]` float64 probability of each item after those above it; their product is the
      propensity of the slate.
    """
    slates = Slates(slate.items, slate.creatives, slate.is_ad)
    return np.asarray(logger.propensity(*offer_of(batch, books), slates), np.float64)


def offer_of(batch: Batch, books: Books) -> tuple[Requests, Book, jax.Array]:
    """The requests of a batch of a market's log, their books and organic items, for its logger."""
    names = ("history_poi", "history_creative", "context")
    given = {name: jnp.asarray(batch[name]) for name in names}
    number = np.maximum(np.asarray(batch["book"]), 0)
    requests = Requests(user=jnp.zeros(len(number), jnp.int32), **given)
    return requests, book_rows(books, number), jnp.asarray(batch["organic"])
