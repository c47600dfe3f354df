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
    best_continuations,
    extended,
    finish,
    prefix_of,
    start,
)
from ega_jax.generation.bidding import token_scores
from ega_jax.generation.candidates import Candidates, Overlay, Prefix, Report
from ega_jax.generation.compaction import first_equal, fold_where, map_where
from ega_jax.generation.decoder import Decoder, DecoderSizes
from ega_jax.generation.transformer import KeysValues
from ega_jax.types import IMPOSSIBLE

NARROW = 15  # Width of options that most nodes below the root need.


@struct.dataclass
class Past:
    """The decoder's past, by step and by row: the first of the `R * S` beams with the prefix."""

    cache: tuple[KeysValues, ...]  # One per block, each [L, R * S, H, D / H].
    states: jax.Array  # [L, R * S, D] states that predict the next code.
    logits: jax.Array  # [R * S, W] logits of the next code.
    trail: jax.Array  # [R * S, L] int32 row of a beam's prefix at each step.


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
    variants = Variants(candidates, candidates.overlay_of(reports), alpha, beta)
    positions = decoder.positions(config.num_slots)
    branches = [
        functools.partial(_next_code, variants, layer, width, config.num_layers)
        for layer in range(config.num_layers)
        for width in (min(NARROW, candidates.book.widths[layer]), candidates.book.widths[layer])
    ]

    def next_code(carry: tuple[Search, Past], position) -> tuple[tuple[Search, Past], None]:
        search, past = carry
        step, embedding = position
        layer = step % config.num_layers
        first, distinct = _distinct(candidates, variants.overlays, search, past, step, layer)
        past = _decode(decoder, memory, search, past, (first, distinct), embedding, step)
        is_wide = variants.most_children(search, step, config.num_layers) > NARROW
        branch = 2 * layer + is_wide
        search, parent = lax.switch(branch, branches, search, past.logits, first, distinct, step)
        rows = (jnp.arange(num_variants)[:, None] * num_beams + parent).reshape(-1)
        past = dataclasses.replace(past, trail=past.trail[rows])
        return (search, past), None

    carry = _start(config, num_variants, num_beams), _no_past(decoder, num_variants * num_beams)
    steps = jnp.arange(positions.shape[0])
    (search, past), _ = lax.scan(next_code, carry, (steps, positions))
    last = steps[config.num_layers - 1 :: config.num_layers]  # The last step of each slot.
    states = past.states[last[None], past.trail[:, last]]
    states = states.reshape(num_variants, num_beams, *states.shape[1:])
    return jax.vmap(finish, in_axes=(0, 0, None))(search, states, candidates)


def _start(config: DecoderSizes, num_variants: int, num_beams: int) -> Search:
    """The initial state: per variant, one beam with an empty slate and `S - 1` unused beams."""
    room = (num_variants, num_beams)
    search = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (*room, *x.shape[1:])), start(config, config.num_slots)
    )
    first = jnp.arange(num_beams) == 0
    log_prob = jnp.where(first, 0.0, IMPOSSIBLE)[None]
    return dataclasses.replace(search, log_prob=jnp.broadcast_to(log_prob, room))


def _no_past(decoder: Decoder, rows: int) -> Past:
    config = decoder.config
    length = config.num_slots * config.num_layers
    shape = (length, rows, config.num_heads, config.width // config.num_heads)
    empty = KeysValues(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
    states = jnp.zeros((length, rows, config.width), config.dtype)
    logits = jax.eval_shape(lambda: decoder.poi_logits(states[0], 0))
    return Past(
        cache=(empty,) * config.decoder_blocks,
        states=states,
        logits=jnp.zeros(logits.shape, logits.dtype),
        trail=jnp.zeros((rows, length), jnp.int32),
    )


def _distinct(candidates, overlays, search, past, step, layer) -> tuple[jax.Array, jax.Array]:
    """The first beam with each beam's prefix `[R * S]`, and which beams are such.

    Prefixes are equal if codes and items are, and if the same organic item is absent.
    """
    shape = search.log_prob.shape
    code = jnp.where(step > 0, search.codes[:, :, step - 1].reshape(-1), 0)
    live = search.log_prob.reshape(-1) > IMPOSSIBLE / 2
    before = jnp.where(step > 0, past.trail[:, step - 1], 0)
    num_layers = candidates.book.num_layers
    item = search.chosen[:, :, jnp.maximum(step // num_layers - 1, 0)].reshape(-1)
    banned = jnp.where(overlays.path[:, 0] < 0, overlays.candidate, -1)
    banned = jnp.broadcast_to(banned[:, None], shape).reshape(-1)
    key = jnp.stack([jnp.where(live, before, -1), code, item, banned], axis=1)
    first = first_equal(key)
    return first, live & (first == jnp.arange(first.shape[0]))


def _decode(decoder, memory, search, past, rows, position, step) -> Past:
    """Runs the decoder at one position of all distinct prefixes, and writes their past."""
    config, chunk = decoder.config, search.log_prob.shape[1]
    first, distinct = rows
    layer = step % config.num_layers
    code = search.codes[:, :, step - 1].reshape(-1)

    def decode(rows: jax.Array, past: Past) -> Past:
        read = jnp.minimum(rows, code.size - 1)
        x = decoder.code_input(code[read], (layer - 1) % config.num_layers)
        x = jnp.where(step > 0, x, decoder.begin_input()[None]) + position[None]
        x, new = _step(decoder, memory, past, x, past.trail[read], step)
        write = lambda into, x: into.at[step, rows].set(x, mode="drop")
        return dataclasses.replace(
            past,
            cache=jax.tree.map(write, past.cache, new),
            states=write(past.states, x),
            logits=past.logits.at[rows].set(decoder.poi_logits(x, layer), mode="drop"),
        )

    past = fold_where(decode, distinct, chunk, past)
    trail = lax.dynamic_update_index_in_dim(past.trail, first, step, 1)
    return dataclasses.replace(past, trail=trail)


def _step(decoder, memory, past, x, trail, step) -> tuple[jax.Array, tuple[KeysValues, ...]]:
    """Runs the decoder at one position of the prefixes with the trails `trail [n, L]`."""
    place = jnp.arange(trail.shape[1])
    new = []
    for block, cache in enumerate(past.cache):
        own = decoder.block_keys_values(block, x)
        along = jax.tree.map(lambda x: x[place[None], trail], cache)  # [n, L, H, D / H]
        now = (place == step)[None, :, None, None]
        keys = jnp.where(now, own.keys[:, None], along.keys)
        values = jnp.where(now, own.values[:, None], along.values)
        keys = jnp.moveaxis(keys, 1, -1)
        x = decoder.block_step(block, x, keys, values, place <= step, memory)
        new.append(own)
    return x, tuple(new)


@struct.dataclass
class Variants:
    """`R` variants of one request."""

    candidates: Candidates
    overlays: Overlay  # [R]
    alpha: chex.Numeric
    beta: chex.Numeric

    def most_children(self, search: Search, step: jax.Array, num_layers: int) -> jax.Array:
        """The most children of any beam's node."""
        layer = step % num_layers
        live = search.log_prob > IMPOSSIBLE / 2
        node = jnp.where(layer > 0, search.nodes[:, :, step - 1], self.candidates.root)
        count = [
            lambda depth=depth: self.candidates.book.children(depth, node)[1]
            for depth in range(num_layers)
        ]
        return jnp.max(jnp.where(live, lax.switch(layer, count), 0))


def _next_code(variants, layer, width, num_layers, search, logits, first, distinct, step):
    """Extends all beams by the code of a static layer; returns them and their parents `[R, S]`.

    The scores of a prefix's options are computed once for all variants. A report changes at most
    one of them.
    """
    t = step // num_layers
    num_variants, num_beams = search.log_prob.shape
    root = variants.candidates.root
    prefix = jax.vmap(lambda search: prefix_of(search, root, t, layer))(search)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prefix)
    row_overlay = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), variants.overlays)
    weigh = lambda logits, options: token_scores(
        jnp.take_along_axis(logits, options.code, axis=-1),
        options.bid, options.where, variants.alpha, variants.beta,
    )  # fmt: skip

    def base(rows: jax.Array) -> jax.Array:
        """Scores of all options without reports of ads; an organic item may be absent."""

        def one(prefix: Prefix, overlay: Overlay, logits: jax.Array) -> jax.Array:
            is_ad = overlay.path[0] >= 0
            overlay = dataclasses.replace(
                overlay,
                candidate=jnp.where(is_ad, -1, overlay.candidate),
                path=jnp.full_like(overlay.path, -1),
            )
            single = jax.tree.map(lambda x: x[None], prefix)
            options = dataclasses.replace(variants.candidates, overlay=overlay).options(
                layer, single, width
            )
            return weigh(logits[None], options)[0]

        pick = lambda x: x[rows]
        return jax.vmap(one)(*jax.tree.map(pick, (flat, row_overlay, logits)))

    scores = map_where(base, distinct, chunk=num_beams)
    own = first.reshape(num_variants, num_beams)

    def extend(search: Search, prefix: Prefix, overlay: Overlay, own: jax.Array):
        variant = dataclasses.replace(variants.candidates, overlay=overlay)
        beam = jnp.arange(num_beams)
        column = variant.report_column(layer, prefix)
        changed = variant.option(layer, prefix, column)
        of_code = logits[own, changed.code[:, 0]][:, None]
        new = token_scores(of_code, changed.bid, changed.where, variants.alpha, variants.beta)
        score = scores[own].at[beam, column].set(new[:, 0], mode="drop")
        valid = score > IMPOSSIBLE / 2
        stuck = ~valid.any(-1)
        log_z = jnp.where(valid, jax.nn.log_softmax(score, axis=-1), IMPOSSIBLE)
        log_z = log_z.at[:, 0].set(jnp.where(stuck, 0.0, log_z[:, 0]))
        best = best_continuations(search, log_z, num_beams)
        parents = jax.tree.map(lambda x: x[best.parent], prefix)
        taken = variant.option(layer, parents, best.place)
        search = extended(search, best, taken.node[:, 0], taken.code[:, 0], step)
        if layer == num_layers - 1:
            item = variant.item(prefix_of(search, root, t, num_layers))
            chosen = lax.dynamic_update_index_in_dim(search.chosen, item, t, 1)
            search = dataclasses.replace(search, chosen=chosen)
        return search, best.parent

    return jax.vmap(extend)(search, prefix, variants.overlays, own)
