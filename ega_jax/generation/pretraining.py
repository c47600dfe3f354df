"""Interest pre-training of the generator (paper sec. 4.4.1, eqs. 27-29)."""

from collections.abc import Callable

import chex
import jax.numpy as jnp

from ega_jax.generation.generator import Generator, GeneratorConfig, codes_of, log_probs
from ega_jax.types import Catalogue, Metrics, Params, Sessions


def weighted_mean(values: chex.Array, weights: chex.Array) -> chex.Array:
    """Mean of `values` under non-negative `weights` of the same shape; 0 where none weighs."""
    total = weights.sum()
    return jnp.where(total > 0, (values * weights).sum() / jnp.where(total > 0, total, 1.0), 0.0)


def slate_nll(
    params: Params,
    config: GeneratorConfig,
    catalogue: Catalogue,
    sessions: Sessions,
    dropout_key: chex.PRNGKey | None = None,
) -> tuple[chex.Array, chex.Array]:
    """Negative log-likelihood of the slots of logged slates, teacher-forced (27)-(28).

    Args:
      params: the generator's parameters.
      config: its sizes.
      catalogue: the items' codes.
      sessions: histories and slates.
      dropout_key: turns dropout on.

    Returns:
      NLL in nats of each slot's POI codes and of its creative codes, both `[B, K]`; the latter is
      0 without creatives. What empty slots hold means nothing.
    """
    model = Generator(config)
    train = dropout_key is not None
    rngs = {"dropout": dropout_key} if train else {}
    poi_codes = codes_of(catalogue.poi_codes, sessions.target_poi)
    creative_codes = (
        codes_of(catalogue.creative_codes, sessions.target_creative) if config.creatives else None
    )

    def forward(model: Generator):
        memory = model.encode(
            sessions.history_poi, sessions.history_creative, catalogue, deterministic=not train
        )
        return model(memory, poi_codes, creative_codes, deterministic=not train)

    logits = model.apply({"params": params}, method=forward, rngs=rngs)
    nll_poi = -log_probs(logits.poi, poi_codes).sum(-1)
    if logits.creative is None:
        return nll_poi, jnp.zeros_like(nll_poi)
    return nll_poi, -log_probs(logits.creative, creative_codes).sum(-1)


def pretraining_loss(config: GeneratorConfig, catalogue: Catalogue) -> Callable:
    """The loss of interest pre-training, in the form that the training loop takes (29).

    Args:
      config: sizes of the generator.
      catalogue: the items' codes.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`, where `batch` holds
      the fields of `Sessions` and the loss is the mean over slots, by their weights, of the NLL
      in nats of the POI's codes plus that of the creative's.
    """

    def loss(params: Params, variables, batch: dict[str, chex.Array], key: chex.PRNGKey):
        sessions = sessions_of(batch)
        nll_poi, nll_creative = slate_nll(params, config, catalogue, sessions, key)
        metrics = nll_metrics(sessions, nll_poi, nll_creative)
        return metrics["nll_poi"] + metrics["nll_creative"], (metrics, variables)

    return loss


def sessions_of(batch: dict[str, chex.Array]) -> Sessions:
    """Picks the fields of `Sessions` from a batch that may hold more."""
    return Sessions(**{name: batch[name] for name in Sessions.__dataclass_fields__})


def nll_metrics(sessions: Sessions, nll_poi: chex.Array, nll_creative: chex.Array) -> Metrics:
    """Means over slots by their weights; a creative counts where there is one."""
    weight = sessions.target_weight
    return {
        "nll_poi": weighted_mean(nll_poi, weight),
        "nll_creative": weighted_mean(nll_creative, weight * (sessions.target_creative >= 0)),
    }
