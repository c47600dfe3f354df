"""Choice of creatives by scoring all creatives of a POI; a POI has few (sec. 4.1.3, eq. 16)."""

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
    """Log-probability of given creatives in the slots of slates.

    Args:
      decoder: the generator.
      memory: encoded histories, with the leading axes of the slates or none.
      states: `[..., K, D]` POI decoder states at the position that predicts each slot's last code.
      poi: `[..., K]` POI ids, -1 in empty slots.
      creatives: `[..., K, M]` ids of the creatives to score, -1 padding.
      catalogue: the items' codes.

    Returns:
      `[..., K, M]` float32 log-probabilities summed over layers, -1e30 at padding.
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
    """Chooses each slot's most probable creative among those of its POI: exact, without beams.

    Args:
      decoder: the generator.
      memory: encoded histories.
      states: `[..., K, D]` POI decoder states at the position that predicts each slot's last code.
      poi: `[..., K]` POI ids, -1 in empty slots.
      catalogue: the items' codes and the creatives of each POI.

    Returns:
      `[..., K]` int32 creative ids, -1 if the slot is empty or its POI has no creative.
    """
    owned = jnp.where(poi[..., None] >= 0, catalogue.poi_creatives[jnp.maximum(poi, 0)], -1)
    scores = creative_log_probs(decoder, memory, states, poi, owned, catalogue)
    best = jnp.argmax(scores, axis=-1)[..., None]
    return jnp.take_along_axis(owned, best, axis=-1)[..., 0]
