"""Evaluating retrieval baselines by ranking all items of the catalogue."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ega_jax.evaluation.retrieval import recall_ndcg, without_seen

KS = (5, 10)
Scores = Callable[[np.ndarray], ArrayLike]  # Histories [B, T] -> scores of all items [B, P].


def full_ranking(scores: Scores, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Measures recall and NDCG over the whole catalogue, leave-one-out.

    Ties go to the item with the lower id. Items of the history may be recommended again, as by the
    generator. The metrics `unseen_*` remove the items of the history from the ranking, as many
    papers do.

    Args:
      scores: `history [B, T] -> [B, P]`, higher is better; P is at least the largest cut-off.
      batches: batches with `history_poi` `[B, T]` and the target in the first column of
        `target_poi`; rows without a target are left out.

    Returns:
      `recall@k`, `ndcg@k`, `unseen_recall@k` and `unseen_ndcg@k` for each k of `KS`.
    """
    rows = [_ranked(scores, np.asarray(batch["history_poi"])) for batch in batches]
    target = np.concatenate([batch["target_poi"][:, 0] for batch in batches])
    ranked, unseen = (np.concatenate(part) for part in zip(*rows, strict=True))
    figures = recall_ndcg(ranked, target, KS, where=target >= 0)
    without = recall_ndcg(unseen, target, KS, where=target >= 0)
    figures |= {f"unseen_{name}": value for name, value in without.items()}
    return {name: float(value) for name, value in figures.items()}


def _ranked(scores: Scores, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best items `[B, max(KS)]`: of all items, and of those not in the history."""
    return jax.device_get(_best(jnp.asarray(scores(history)), history))


@jax.jit
def _best(scored: jax.Array, history: jax.Array) -> tuple[jax.Array, jax.Array]:
    enough = min(max(KS) + history.shape[1], scored.shape[1])
    ranked = jax.lax.top_k(scored, enough)[1]
    return ranked[:, : max(KS)], without_seen(ranked, history)[:, : max(KS)]
