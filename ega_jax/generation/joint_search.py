"""Joint beam search over many variants of one request: other bids of single ads.

Regret needs the slate of a request under many other bids of each advertiser. The beams of these
searches largely coincide, and the decoder's output for a prefix does not depend on bids. So each
distinct prefix is decoded once for all variants. The decoder's past is stored by step and distinct
prefix; a beam's `trail` gives the row of each of its prefixes.

One step of the scan decodes one code. The decoder is compiled once, the options once per layer.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.generation.beam_search import (
    Beams,
    Search,
    advance,
    finish,
    prefix_of,
    score,
    start,
)
from ega_jax.generation.candidates import Candidates, Overlay, Report
from ega_jax.generation.compaction import first_equal, map_where
from ega_jax.generation.decoder import Decoder, DecoderSizes
from ega_jax.generation.transformer import KeysValues
from ega_jax.types import IMPOSSIBLE


@struct.dataclass
class Past:
    """The decoder's past, by step and by row: the first of the `R * S` beams with the prefix."""

    cache: tuple[KeysValues, ...]  # One per block, each [L, R * S, H, D / H].
    states: jax.Array  # [L, R * S, D] states that predict the next code.
    trail: jax.Array  # [R * S, L] int32 row of a beam's prefix at each step.


@struct.dataclass
class Decoded:
    """The decoder's outputs for the prefixes of `n` beams."""

    states: jax.Array  # [n, D]
    logits: jax.Array  # [n, W]
    new: tuple[KeysValues, ...]  # One per block, each [n, H, D / H].


def joint_search(
    decoder: Decoder,
    memory: Any,
    candidates: Candidates,
    reports: Report,
    *,
    num_beams: int,
    alpha: chex.Numeric = 1.0,
    beta: chex.Numeric = 1.0,
) -> Beams:
    """Returns the result of `beam_search` for each of `R` variants of one request.

    Args:
      decoder: the generator.
      memory: the encoded history of the request, without a batch axis.
      candidates: the items that may be shown.
      reports: `[R]` the report that makes each variant.
      num_beams: `S`, static.
      alpha: exponent of token bids (21).
      beta: floor of token weights (21).

    Returns:
      The slates of each variant; all fields have a leading axis `R`.
    """
    config = decoder.config
    num_variants = reports.bid.shape[0]
    overlays = candidates.overlay_of(reports)
    positions = decoder.positions(config.num_slots)
    layers = [
        functools.partial(_next_code, candidates, overlays, layer, config.num_layers, alpha, beta)
        for layer in range(config.num_layers)
    ]

    def next_code(carry: tuple[Search, Past], position) -> tuple[tuple[Search, Past], None]:
        search, past = carry
        step, embedding = position
        layer = step % config.num_layers
        logits, past = _decode(decoder, memory, search, past, embedding, step, layer)
        search, parent = lax.switch(layer, layers, search, logits, step)
        rows = (jnp.arange(num_variants)[:, None] * num_beams + parent).reshape(-1)
        past = dataclasses.replace(past, trail=past.trail[rows])
        return (search, past), None

    carry = _start(config, num_variants, num_beams), _no_past(config, num_variants * num_beams)
    steps = jnp.arange(positions.shape[0])
    (search, past), _ = lax.scan(next_code, carry, (steps, positions))
    last = steps[config.num_layers - 1 :: config.num_layers]  # The last step of each slot.
    states = past.states[last, past.trail[:, last]]
    states = states.reshape(num_variants, num_beams, *states.shape[1:])
    return jax.vmap(finish, in_axes=(0, 0, None))(search, states, candidates)


def _start(config: DecoderSizes, num_variants: int, num_beams: int) -> Search:
    """The initial state: per variant, one beam with an empty slate and `S - 1` unused beams."""
    room = (num_variants, num_beams)
    search = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (*room, *x.shape[1:])), start(config, config.num_slots)
    )
    first = jnp.arange(num_beams) == 0
    return dataclasses.replace(
        search, log_prob=jnp.broadcast_to(jnp.where(first, 0.0, IMPOSSIBLE), room)
    )


def _no_past(config: DecoderSizes, rows: int) -> Past:
    length = config.num_slots * config.num_layers
    shape = (length, rows, config.num_heads, config.width // config.num_heads)
    empty = KeysValues(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
    return Past(
        cache=(empty,) * config.decoder_blocks,
        states=jnp.zeros((length, rows, config.width), config.dtype),
        trail=jnp.zeros((rows, length), jnp.int32),
    )


def _decode(decoder, memory, search, past, position, step, layer):
    """Runs the decoder at one position of all distinct prefixes.

    Returns:
      Logits `[R, S, W]` of the beams, and the updated past.
    """
    config, variants = decoder.config, search.log_prob.shape
    code = search.codes[:, :, step - 1].reshape(-1)
    live = search.log_prob.reshape(-1) > IMPOSSIBLE / 2
    before = jnp.where(step > 0, past.trail[:, step - 1], 0)
    same = jnp.stack([jnp.where(live, before, -1), jnp.where(step > 0, code, 0)], axis=1)
    first = first_equal(same)
    distinct = live & (first == jnp.arange(first.shape[0]))

    def decode(rows: jax.Array) -> Decoded:
        x = decoder.code_input(code[rows], (layer - 1) % config.num_layers)
        x = jnp.where(step > 0, x, decoder.begin_input()) + position
        return _step(decoder, memory, past, x, past.trail[rows], step, layer)

    found = map_where(decode, distinct, chunk=variants[1])
    write = lambda into, x: lax.dynamic_update_index_in_dim(into, x, step, 0)
    longer = Past(
        cache=jax.tree.map(write, past.cache, found.new),
        states=write(past.states, found.states),
        trail=lax.dynamic_update_index_in_dim(past.trail, first, step, 1),
    )
    return found.logits[first].reshape(*variants, -1), longer


def _step(decoder, memory, past, x, trail, step, layer) -> Decoded:
    """Runs the decoder at one position of the prefixes with the trails `trail [n, L]`."""
    place = jnp.arange(trail.shape[1])
    new = []
    for block, cache in enumerate(past.cache):
        own = decoder.block_keys_values(block, x)
        along = jax.tree.map(lambda x: x[place, trail], cache)  # [n, L, H, D / H]
        now = (place == step)[:, None, None]
        keys = jnp.where(now, own.keys[:, None], along.keys)
        values = jnp.where(now, own.values[:, None], along.values)
        keys = jnp.moveaxis(keys, 1, -1)
        x = decoder.block_step(block, x, keys, values, place <= step, memory)
        new.append(own)
    return Decoded(x, decoder.poi_logits(x, layer), tuple(new))


def _next_code(candidates, overlays, layer, num_layers, alpha, beta, search, logits, step):
    """Extends all beams by the code of a static layer; returns them and their parents `[R, S]`."""

    def one(overlay: Overlay, search: Search, logits: jax.Array):
        t = step // num_layers
        variant = dataclasses.replace(candidates, overlay=overlay)
        options = variant.options(layer, prefix_of(search, variant.root, t, layer))
        log_z, options = score(logits, options, alpha, beta)
        search, parent = advance(search, log_z, options, step, search.log_prob.shape[0])
        if layer == num_layers - 1:
            item = variant.item(prefix_of(search, variant.root, t, num_layers))
            chosen = lax.dynamic_update_index_in_dim(search.chosen, item, t, 1)
            search = dataclasses.replace(search, chosen=chosen)
        return search, parent

    return jax.vmap(one)(overlays, search, logits)
