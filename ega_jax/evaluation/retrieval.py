"""Retrieval metrics over full rankings of items: a hit is the target item, not its code."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def target_rank(ranked_items: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the rank of the target in each ranking.

    Args:
      ranked_items: `[B, R]` int item ids, best first, -1 where none.
      target: `[B]` int item ids; a negative one is never found.

    Returns:
      `[B]` int32 rank from 0; `R` if the target is not listed.
    """
    hit = (ranked_items == target[:, None]) & (target >= 0)[:, None]
    return jnp.where(hit.any(-1), jnp.argmax(hit, axis=-1), ranked_items.shape[1])


def without_seen(ranked_items: jax.Array, history: jax.Array) -> jax.Array:
    """Drops the items of histories `[B, T]` from rankings `[B, R]`, which are padded with -1.

    Args:
      ranked_items: int item ids, best first, -1 where none.
      history: int item ids, -1 where none.
    """
    seen = (ranked_items[:, :, None] == history[:, None]).any(-1)
    order = jnp.argsort(seen, axis=-1, stable=True)
    return jnp.take_along_axis(jnp.where(seen, -1, ranked_items), order, axis=-1)


def recall_ndcg(
    ranked_items: ArrayLike,
    target: ArrayLike,
    ks: Sequence[int] = (5, 10),
    where: ArrayLike | None = None,
) -> dict[str, jax.Array]:
    """Computes recall@k and NDCG@k with one relevant item per request.

    With the target at rank r from 0, `recall@k = [r < k]` and `ndcg@k = [r < k] / log2(r + 2)`.

    Args:
      ranked_items: `[B, R]` int item ids, best first, -1 where none.
      target: `[B]` int item ids.
      ks: cut-offs, each at most R.
      where: `[B]` bool, the requests that count; default: all.

    Returns:
      `recall@k` and `ndcg@k` for each k: means over the requests that count, 0 if none does.

    Raises:
      ValueError: a cut-off exceeds R.

    Examples:
      The first target has rank 1, so its NDCG is 1 / log2(3); the second is not listed:

      >>> metrics = recall_ndcg(ranked_items=[[7, 3, 5], [1, 2, 4]], target=[3, 9], ks=(1, 3))
      >>> {name: round(float(value), 4) for name, value in metrics.items()}
      {'recall@1': 0.0, 'ndcg@1': 0.0, 'recall@3': 0.5, 'ndcg@3': 0.3155}
    """
    ranked_items, target = jnp.asarray(ranked_items), jnp.asarray(target)
    chex.assert_rank([ranked_items, target], [2, 1])
    chex.assert_equal_shape_prefix([ranked_items, target], 1)
    if max(ks) > ranked_items.shape[1]:
        raise ValueError(
            f"recall@{max(ks)} needs rankings of at least {max(ks)} items, "
            f"got {ranked_items.shape[1]}"
        )
    rank = target_rank(ranked_items, target)
    where = jnp.ones(rank.shape, bool) if where is None else jnp.asarray(where)
    chex.assert_equal_shape([rank, where])
    count = jnp.maximum(where.sum(), 1)
    metrics = {}
    for k in ks:
        hit = where & (rank < k)
        metrics[f"recall@{k}"] = hit.sum() / count
        metrics[f"ndcg@{k}"] = jnp.where(hit, 1.0 / jnp.log2(rank + 2.0), 0.0).sum() / count
    return metrics
