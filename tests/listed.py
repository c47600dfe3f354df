"""A request's own list of candidates, each of another POI."""

import jax.numpy as jnp

from ega_jax.generation.candidates import list_candidates


def listed(codes, is_ad, bid, where, num_slots, num_codes, **rules):
    """Indexes a list whose items are of the POIs 0, 1, 2 and so on."""
    item = jnp.arange(is_ad.shape[-1], dtype=jnp.int32)
    return list_candidates(
        jnp.asarray(codes), item, jnp.asarray(is_ad), jnp.asarray(bid), jnp.asarray(where),
        num_slots=num_slots, num_codes=num_codes, **rules,
    )  # fmt: skip
