"""Evaluating the reward model against logged feedback and against the true probabilities."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ega_jax.data.market.clicks import Truth
from ega_jax.phases.logged import feedback_report
from ega_jax.phases.reward import batch_predictor
from ega_jax.reward.model import Items, RewardConfig
from ega_jax.types import Params

Batch = Mapping[str, Any]

CLEAR = 0.1  # Least relative change of a true probability for a direction to be tested.
SLATE = ("shown_poi", "shown_creative", "shown_is_ad")


@dataclasses.dataclass(frozen=True)
class Moved:
    """Changed slates `[B, K]`, and the slots whose items stayed the same."""

    slate: dict[str, np.ndarray]  # The fields of SLATE, [B, K] each.
    kept: np.ndarray  # [B, K] bool.


def evaluate_response(
    params: Params,
    config: RewardConfig,
    items: Items,
    batches: Iterable[Batch],
    truth: Truth | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Measures a reward model on logged sessions.

    Args:
      params: the reward model's parameters.
      config: its config.
      items: its item features.
      batches: batches of an ad log.
      truth: the log's true click probabilities, `None` if unknown.
      seed: seeds the random changes of slates.

    Returns:
      `auc_NAME`, `logloss_NAME`, `ece_NAME` for the responses `poi`, `image` and `conversion`.
      With a truth also `truth_...`, the same for the true probabilities on the same rows, and the
      share of clear cases in which a change of the slate moves the click probability of an
      unchanged item in the true direction: `direction_swap` (two slots swap their items),
      `direction_replace` (a candidate replaces an item), `direction` (both). `clear_cases` is the
      number of clear cases.
    """
    predict = batch_predictor(config, items)
    batches = [dict(batch) for batch in batches]
    predicted = [jax.device_get(predict(params, batch)) for batch in batches]
    figures = feedback_report([vars(found) for found in predicted], batches)
    if truth is None:
        return figures
    actual = [_respond(truth, batch) for batch in batches]
    true_figures = feedback_report([vars(found) for found in actual], batches)
    figures |= {f"truth_{name}": value for name, value in true_figures.items()}
    known = list(zip(batches, predicted, actual, strict=True))
    rng = np.random.default_rng(seed)
    moves = {"swap": swap, "replace": lambda rng, batch: replace(rng, batch, items)}
    right, clear = {}, {}
    for name, move in moves.items():
        counts = [_directions(predict, params, truth, move(rng, row[0]), *row) for row in known]
        right[name], clear[name] = np.sum(counts, axis=0).tolist()
        figures[f"direction_{name}"] = right[name] / max(clear[name], 1)
    figures["direction"] = sum(right.values()) / max(sum(clear.values()), 1)
    return figures | {"clear_cases": float(sum(clear.values()))}


def _directions(predict, params, truth, moved: Moved, batch, predicted, actual) -> np.ndarray:
    """Returns the numbers of right and of clear cases, `[2]`, for changed slates."""
    batch = batch | moved.slate
    found = jax.device_get(predict(params, batch))
    change = relative_change(predicted.click_poi, found.click_poi)
    true_change = relative_change(actual.click_poi, _respond(truth, batch).click_poi)
    return agreement(change, true_change, moved.kept)


def swap(rng: np.random.Generator, batch: Batch) -> Moved:
    """Swaps the items of two random filled slots of each slate; a lone item stays."""
    shown = np.asarray(batch["shown_poi"])
    first, second = _random_slots(rng, shown >= 0, 2)
    rows = np.arange(len(shown))
    slate = {name: np.array(batch[name]) for name in SLATE}
    for values in slate.values():
        values[rows, first], values[rows, second] = values[rows, second], values[rows, first]
    return Moved(slate, (shown >= 0) & ~_at(shown, first, second))


def replace(rng: np.random.Generator, batch: Batch, items: Items) -> Moved:
    """Replaces a random item by a random candidate that is not shown, with its first creative.

    The candidate is one that the session itself lists: in a log with books, an organic item.
    """
    shown = np.asarray(batch["shown_poi"])
    offered = np.asarray(batch["organic"] if "organic" in batch else batch["item"])
    is_ad = np.asarray(batch["is_ad"]) if "is_ad" in batch else np.zeros(offered.shape, bool)
    (slot,) = _random_slots(rng, shown >= 0, 1)
    free = (offered >= 0) & (offered[:, :, None] != shown[:, None, :]).all(-1)
    (candidate,) = _random_slots(rng, free, 1)
    rows = np.arange(len(shown))
    chosen = offered[rows, candidate]
    creative = np.asarray(items.catalogue.poi_creatives)[chosen, 0]
    taken = (chosen, creative, is_ad[rows, candidate])
    possible = free.any(-1) & (shown >= 0).any(-1)
    slate = {name: np.array(batch[name]) for name in SLATE}
    for name, value in zip(SLATE, taken, strict=True):
        slate[name][rows[possible], slot[possible]] = value[possible]
    return Moved(slate, (shown >= 0) & ~_at(shown, slot) & possible[:, None])


def relative_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns `after / before - 1`, 0 where `before` is 0."""
    return np.where(before > 0, after / np.where(before > 0, before, 1.0) - 1.0, 0.0)


def agreement(change: np.ndarray, true_change: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Counts `[2]`: clear true changes whose predicted change has the same sign, and all clear."""
    clear = where & (np.abs(true_change) > CLEAR)
    return np.array([(clear & (change * true_change > 0)).sum(), clear.sum()])


def _respond(truth: Truth, batch: Batch) -> Any:
    """Returns true `Responses` to a batch's slates, on the host; blank rows have no meaning."""
    session = np.maximum(np.asarray(batch["session"]), 0)
    return jax.device_get(truth.responses(session, *(np.asarray(batch[name]) for name in SLATE)))


def _random_slots(rng: np.random.Generator, where: np.ndarray, number: int) -> np.ndarray:
    """Draws `[number, B]` distinct true columns of `where [B, L]` per row.

    If a row has too few, its first draw is repeated; if it has none, the draw is arbitrary.
    """
    order = np.argsort(np.where(where, rng.random(where.shape), 2.0), axis=1)[:, :number].T
    filled = where.sum(axis=1) > np.arange(number)[:, None]
    return np.where(filled, order, order[0])


def _at(shown: np.ndarray, *slots: np.ndarray) -> np.ndarray:
    """Returns `[B, K]` bool: whether a slot of `shown [B, K]` is one of `slots`, `[B]` each."""
    columns = np.arange(shown.shape[1])
    return np.any([columns == slot[:, None] for slot in slots], axis=0)
