"""Interest pre-training of the generator (paper sec. 4.4.1, eqs. 27-29)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.generation.codes import codes_of, log_probs
from ega_jax.generation.generator import Generator, GeneratorConfig, apply
from ega_jax.quantization.prefix_index import CatalogueIndex, catalogue_index
from ega_jax.types import Catalogue, LossFn, Metrics, Params, Sessions


@struct.dataclass
class CodeTree:
    """The valid code sequences: those of the catalogue's items."""

    index: CatalogueIndex
    nodes: jax.Array  # [C, P] int32 the node that holds an item, at each depth below C.


def code_tree(codes: np.ndarray, num_codes: int) -> CodeTree:
    """Builds the code tree of a catalogue from its POI codes `[P, C]`, on the host."""
    index = catalogue_index(codes, num_codes)
    return CodeTree(index, jnp.asarray(index.nodes()))


def item_nll(logits: jax.Array, codes: jax.Array, items: jax.Array, tree: CodeTree | None):
    """Negative log-likelihood in nats of items, summed over their codes.

    With a tree, the softmax of each code runs over the codes that follow the same prefix in the
    catalogue, as in the search (22). The likelihoods of all code sequences in the catalogue then
    sum to one, and the model need not learn which sequences exist. Without a tree, the softmax
    runs over all codes of the layer, as (27) reads.

    Args:
      logits: `[..., C, W]` teacher-forced logits.
      codes: `[..., C]` codes of the items.
      items: `[...]` int32 ids; ids below 0 are read as 0.
      tree: the code tree of the catalogue, or None.

    Returns:
      `[...]` float32.
    """
    if tree is None:
        return -log_probs(logits, codes).sum(-1)
    rows = logits.reshape(-1, *logits.shape[-2:])
    nodes = tree.nodes[:, jnp.maximum(items.reshape(-1), 0)]
    total = jnp.zeros(rows.shape[0])
    for layer, node in enumerate(nodes):
        children = tree.index.expand(layer, node)
        siblings = jnp.take_along_axis(rows[:, layer], children.code, axis=-1)
        total += jax.nn.logsumexp(siblings, axis=-1, where=children.where)
    picked = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0].sum(-1)
    return total.reshape(items.shape) - picked


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean of `values` by non-negative `weights` of the same shape; 0 if all weights are 0."""
    total = weights.sum()
    return jnp.where(total > 0, (values * weights).sum() / jnp.where(total > 0, total, 1.0), 0.0)


def slate_nll(
    params: Params,
    config: GeneratorConfig,
    catalogue: Catalogue,
    sessions: Sessions,
    tree: CodeTree | None = None,
    dropout_key: chex.PRNGKey | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Teacher-forced negative log-likelihood of each slot of logged slates (27)-(28).

    Args:
      params: the generator's parameters.
      config: the generator's sizes.
      catalogue: the items' codes.
      sessions: histories and slates.
      tree: if given, the softmax runs over valid codes only; see `item_nll`.
      dropout_key: if given, dropout of activations and of the history's behaviours is on.

    Returns:
      NLL in nats of each slot's POI codes and of its creative codes, both `[B, K]`; the latter is
      0 without creatives. Entries of empty slots are undefined.
    """
    train = dropout_key is not None
    rngs = {}
    history_poi, history_creative = sessions.history_poi, sessions.history_creative
    if dropout_key is not None:
        key, history_key = jax.random.split(dropout_key)
        rngs = {"dropout": key}
        left_out = jax.random.bernoulli(history_key, config.history_dropout, history_poi.shape)
        history_poi = jnp.where(left_out, -1, history_poi)
        history_creative = jnp.where(left_out, -1, history_creative)
    poi_codes = codes_of(catalogue.poi_codes, sessions.target_poi)
    creative_codes = (
        codes_of(catalogue.creative_codes, sessions.target_creative) if config.creatives else None
    )

    def forward(model: Generator):
        request = history_poi, history_creative, catalogue, sessions.context
        memory = model.encode(*request, deterministic=not train)
        return model(memory, poi_codes, creative_codes, deterministic=not train)

    logits = apply(params, config, forward, rngs=rngs)
    nll_poi = item_nll(logits.poi, poi_codes, sessions.target_poi, tree)
    if creative_codes is None:
        return nll_poi, jnp.zeros_like(nll_poi)
    return nll_poi, -log_probs(logits.creative, creative_codes).sum(-1)


def pretraining_loss(
    config: GeneratorConfig, catalogue: Catalogue, tree: CodeTree | None = None
) -> LossFn:
    """Makes the loss of interest pre-training (29).

    Args:
      config: sizes of the generator.
      catalogue: the items' codes.
      tree: if given, the softmax of POI codes runs over valid codes only; see `item_nll`.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`; `batch` holds the
      fields of `Sessions`. The loss is the sum of two weighted means in nats: the NLL of POI codes
      over slots, and the NLL of creative codes over slots with a creative.
    """

    def loss(params: Params, variables, batch: dict[str, jax.Array], key: chex.PRNGKey):
        sessions = sessions_of(batch)
        nll_poi, nll_creative = slate_nll(params, config, catalogue, sessions, tree, key)
        metrics = nll_metrics(sessions, nll_poi, nll_creative)
        return metrics["nll_poi"] + metrics["nll_creative"], (metrics, variables)

    return loss


def sessions_of(batch: dict[str, jax.Array]) -> Sessions:
    """Picks the fields of `Sessions` from a batch that may hold more."""
    return Sessions(
        **{name: batch[name] for name in Sessions.__dataclass_fields__ if name in batch}
    )


def nll_metrics(sessions: Sessions, nll_poi: jax.Array, nll_creative: jax.Array) -> Metrics:
    """Weighted mean NLL over slots; `nll_creative` covers only slots with a creative."""
    weight = sessions.target_weight
    return {
        "nll_poi": weighted_mean(nll_poi, weight),
        "nll_creative": weighted_mean(nll_creative, weight * (sessions.target_creative >= 0)),
    }
