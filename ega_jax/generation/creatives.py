"""Choice of creatives: a POI owns few, so all of them are scored (paper sec. 4.1.3, eq. 16)."""

import jax
import jax.numpy as jnp

from ega_jax.generation.generator import (
    Generator,
    GeneratorConfig,
    Memory,
    apply,
    codes_of,
    log_probs,
)
from ega_jax.types import IMPOSSIBLE, Catalogue, Params


def creative_log_probs(
    params: Params,
    config: GeneratorConfig,
    memory: Memory,
    states: jax.Array,
    poi: jax.Array,
    creatives: jax.Array,
    catalogue: Catalogue,
) -> jax.Array:
    """Log-probability of given creatives for the slots of slates.

    Args:
      params: the generator's parameters.
      config: its sizes.
      memory: encoded histories, leading axes as those of the slates or none.
      states: `[..., K, D]` POI decoder states where each slot's last code is predicted.
      poi: `[..., K]` POI ids, -1 where empty.
      creatives: `[..., K, M]` creative ids to score, -1 where none.
      catalogue: the items' codes.

    Returns:
      `[..., K, M]` float32 sum over layers of log-probabilities; -1e30 where there is no creative.
    """

    def score(model: Generator):
        slots = model.creative_slots(memory, states, codes_of(catalogue.poi_codes, poi))
        codes = codes_of(catalogue.creative_codes, creatives)
        return log_probs(model.creative_logits(slots[..., None, :], codes), codes).sum(-1)

    scores = apply(params, config, score)
    return jnp.where(creatives >= 0, scores, IMPOSSIBLE)


def choose_creatives(
    params: Params,
    config: GeneratorConfig,
    memory: Memory,
    states: jax.Array,
    poi: jax.Array,
    catalogue: Catalogue,
) -> jax.Array:
    """The most probable creative among those that each slot's POI owns: exact, no beam.

    Args:
      params: the generator's parameters.
      config: its sizes.
      memory: encoded histories.
      states: `[..., K, D]` POI decoder states where each slot's last code is predicted.
      poi: `[..., K]` POI ids, -1 where empty.
      catalogue: the items' codes and which creatives a POI owns.

    Returns:
      `[..., K]` int32 creative ids, -1 where the slot is empty or its POI owns none.
    """
    owned = jnp.where(poi[..., None] >= 0, catalogue.poi_creatives[jnp.maximum(poi, 0)], -1)
    scores = creative_log_probs(params, config, memory, states, poi, owned, catalogue)
    best = jnp.argmax(scores, axis=-1)[..., None]
    return jnp.take_along_axis(owned, best, axis=-1)[..., 0]
