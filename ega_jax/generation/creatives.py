"""Choice of creatives: a POI owns few, so all of them are scored (paper sec. 4.1.3, eq. 16)."""

from typing import Any

import jax
import jax.numpy as jnp

from ega_jax.generation.codes import codes_of, log_probs
from ega_jax.generation.decoder import Decoder
from ega_jax.types import IMPOSSIBLE, Catalogue


def creative_log_probs(
    decoder: Decoder,
    memory: Any,
    states: jax.Array,
    poi: jax.Array,
    creatives: jax.Array,
    catalogue: Catalogue,
) -> jax.Array:
    """Log-probability of given creatives for the slots of slates.

    Args:
      decoder: the generator.
      memory: encoded histories, leading axes as those of the slates or none.
      states: `[..., K, D]` POI decoder states where each slot's last code is predicted.
      poi: `[..., K]` POI ids, -1 where empty.
      creatives: `[..., K, M]` creative ids to score, -1 where none.
      catalogue: the items' codes.

    Returns:
      `[..., K, M]` float32 sum over layers of log-probabilities; -1e30 where there is no creative.
    """
    slots = decoder.creative_slots(memory, states, codes_of(catalogue.poi_codes, poi))
    codes = codes_of(catalogue.creative_codes, creatives)
    scores = log_probs(decoder.creative_logits(slots[..., None, :], codes), codes).sum(-1)
    return jnp.where(creatives >= 0, scores, IMPOSSIBLE)


def choose_creatives(
    decoder: Decoder,
    memory: Any,
    states: jax.Array,
    poi: jax.Array,
    catalogue: Catalogue,
) -> jax.Array:
    """The most probable creative among those that each slot's POI owns: exact, no beam.

    Args:
      decoder: the generator.
      memory: encoded histories.
      states: `[..., K, D]` POI decoder states where each slot's last code is predicted.
      poi: `[..., K]` POI ids, -1 where empty.
      catalogue: the items' codes and which creatives a POI owns.

    Returns:
      `[..., K]` int32 creative ids, -1 where the slot is empty or its POI owns none.
    """
    owned = jnp.where(poi[..., None] >= 0, catalogue.poi_creatives[jnp.maximum(poi, 0)], -1)
    scores = creative_log_probs(decoder, memory, states, poi, owned, catalogue)
    best = jnp.argmax(scores, axis=-1)[..., None]
    return jnp.take_along_axis(owned, best, axis=-1)[..., 0]
