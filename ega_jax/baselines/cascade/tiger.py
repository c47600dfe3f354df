"""TIGER, the cascade's recall: it selects the ads that reach the auction.

Rajput et al., "Recommender Systems with Generative Retrieval" (arXiv 2305.05065): an
encoder-decoder over semantic ids that predicts the next item's codes from the items before it. Here
it is the project's generator with slates of one item and no creatives, trained with the project's
pre-training loss. `recall` searches for the likeliest ads of a book. Unlike in that paper, the
encoder reads no user id, and items that share all their codes have no extra code: they are equally
likely.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.evaluation.retrieval import recall_ndcg
from ega_jax.generation import generator
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.generation.pretraining import CodeTree, slate_nll, weighted_mean
from ega_jax.phases.logged import logged_phase
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.types import Catalogue, LossFn, Params, Sessions

KS = (5, 10)

Ranked = Callable[[Params, Mapping[str, Any]], jax.Array]


@dataclasses.dataclass(frozen=True)
class TigerSettings(LoggedSettings):
    """The group `cascade.tiger`: TIGER's training; its sizes are the generator's."""

    weight_decay: float = 0.0


def tiger_config(config: GeneratorConfig) -> GeneratorConfig:
    """Returns the generator's config, changed to one next item without its creative."""
    return dataclasses.replace(config, num_slots=1, creatives=False)


def item_log_probs(
    params: Params,
    config: GeneratorConfig,
    catalogue: Catalogue,
    history_poi: jax.Array,
    history_creative: jax.Array,
    item: jax.Array,
    tree: CodeTree | None = None,
    dropout_key: chex.PRNGKey | None = None,
    context: jax.Array | None = None,
) -> jax.Array:
    """Returns log-likelihoods of items as the next one, teacher-forced; encodes the request once.

    Args:
      params: TIGER's parameters.
      config: TIGER's config, from `tiger_config`.
      catalogue: the items' codes.
      history_poi: `[..., T]` int32, most recent last, -1 where none.
      history_creative: `[..., T]` int32, ignored.
      item: `[..., N]` int32 POIs; results of negative ids have no meaning.
      tree: the existing codes, over which likelihoods are normalised as in training; see
        `item_nll`.
      dropout_key: random key of the dropout; `None` turns dropout off.
      context: `[..., X]` contexts as logged; `None` if requests have none.

    Returns:
      `[..., N]` float32 in nats.
    """

    def nll(target: jax.Array) -> jax.Array:
        target = target[..., None]
        weight = jnp.ones(target.shape)
        sessions = Sessions(history_poi, history_creative, target, target, weight, context)
        return slate_nll(params, config, catalogue, sessions, tree, dropout_key)[0][..., 0]

    return -jax.vmap(nll, in_axes=-1, out_axes=-1)(item)


def tiger_loss(
    config: GeneratorConfig, catalogue: Catalogue, tree: CodeTree | None = None
) -> LossFn:
    """Returns the loss of TIGER, as `make_train_step` takes it.

    Args:
      config: TIGER's config, from `tiger_config`.
      catalogue: the items' codes.
      tree: see `item_log_probs`.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`: the NLL in nats of each
      shown item as the next item, averaged by the batch's target weights (a click weighs 1);
      `batch` holds the fields of ad logs.
    """

    def loss(params: Params, variables, batch: dict[str, jax.Array], key: chex.PRNGKey):
        history = batch["history_poi"], batch["history_creative"]
        target, context = batch["target_poi"], batch.get("context")
        found = item_log_probs(params, config, catalogue, *history, target, tree, key, context)
        value = weighted_mean(-found, batch["target_weight"])
        return value, ({"nll_poi": value}, variables)

    return loss


def tiger_phase(
    dataset: AdLogDataset,
    catalogue: Catalogue,
    config: GeneratorConfig,
    settings: LoggedSettings,
    seed: int,
    exposure_weight: float,
    tree: CodeTree | None = None,
    search: Ranked | None = None,
) -> Phase:
    """Returns the phase "tiger": it trains on sessions of "pretrain" and evaluates on "align".

    Args:
      dataset: an ad log.
      catalogue: its items' codes.
      config: TIGER's config, from `tiger_config`.
      settings: the training settings; see `logged.logged_phase`.
      seed: seeds the parameters, the order of the sessions and dropout.
      exposure_weight: the loss weight of an item that was shown but not clicked; a click weighs 1.
      tree: see `item_log_probs`.
      search: searches the books that requests name, for a log with books: clicked ads are looked
        for among what it finds. Without it, clicked items are ranked among the request's list.
    """

    @jax.jit
    def likelihoods(params: Params, batch):
        history, item = (batch["history_poi"], batch["history_creative"]), batch["item"]
        context = batch.get("context")
        found = item_log_probs(params, config, catalogue, *history, item, tree, context=context)
        order = jnp.argsort(jnp.where(item >= 0, -found, jnp.inf), axis=-1)
        return jnp.take_along_axis(item, order, axis=-1)

    return logged_phase(
        "tiger",
        dataset,
        settings,
        seed,
        history_length=config.history_length,
        exposure_weight=exposure_weight,
        init=lambda key: generator.init(key, config, catalogue),
        loss=tiger_loss(config, catalogue, tree),
        evaluate=lambda params, batches: retrieval_report(search or likelihoods, params, batches),
    )


def retrieval_report(
    ranked: Ranked, params: Params, batches: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Measures retrieval of the first clicked item among each request's candidates.

    Args:
      ranked: returns the candidates `[B, N]` of a batch, likeliest first.
      params: the first argument of `ranked`.
      batches: batches of an ad log; of requests to books, only the clicks on ads count.

    Returns:
      `recall@k` and `ndcg@k` over requests with a click.
    """
    rows = [(jax.device_get(ranked(params, batch)), batch) for batch in batches]
    weight = np.concatenate([_weight_of_targets(batch) for _, batch in rows])
    target = np.concatenate([np.asarray(batch["target_poi"]) for _, batch in rows])
    first = np.argmax(weight, axis=-1)[:, None]
    taken = np.take_along_axis(weight, first, axis=-1)[:, 0] == 1
    target = np.take_along_axis(target, first, axis=-1)[:, 0]
    order = np.concatenate([order for order, _ in rows])
    missing = max(0, max(KS) - order.shape[1])  # A request may have fewer candidates.
    order = np.pad(order, ((0, 0), (0, missing)), constant_values=-1)
    found = recall_ndcg(order, target, KS, where=taken)
    return {name: float(value) for name, value in found.items()}


def _weight_of_targets(batch: Mapping[str, Any]) -> np.ndarray:
    """The loss weights `[B, K]` of the slots whose items may be retrieved, 0 for the others."""
    weight = np.asarray(batch["target_weight"])
    return np.where(batch["shown_is_ad"], weight, 0) if "book" in batch else weight
