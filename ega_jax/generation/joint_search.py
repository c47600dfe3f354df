"""Joint beam search over many variants of one request: other bids of single ads.

Regret needs the slate of a request under many other bids of each advertiser. The beams of these
searches largely coincide, and the decoder's output for a prefix does not depend on bids. So each
distinct prefix is decoded once for all variants. The decoder's past is stored by step and distinct
prefix; a beam's `trail` gives the row of each of its prefixes.

One step of the scan decodes one code. A report changes at most one option of a prefix, so the
scores of all others are also computed once for all variants.
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
    Continuations,
    Search,
    best_continuations,
    extended,
    finish,
    log_probs_of,
    option_scores,
    prefix_of,
    start,
    with_item,
)
from ega_jax.generation.bidding import token_scores
from ega_jax.generation.candidates import Candidates
from ega_jax.generation.compaction import first_equal, fold_where, map_where
from ega_jax.generation.decoder import Decoder
from ega_jax.generation.reports import ABSENT, Overlay, Report
from ega_jax.generation.slate_space import Prefix
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


@struct.dataclass
class Decoded:
    """The decoder's outputs at one step, by row."""

    new: tuple[KeysValues, ...]  # One per block, each [R * S, H, D / H].
    states: jax.Array  # [R * S, D]
    logits: jax.Array  # [R * S, W]


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
    variants = Variants(candidates, candidates.overlay_of(reports), alpha, beta)
    num_variants = reports.bid.shape[0]

    def next_code(carry: tuple[Search, Past], position) -> tuple[tuple[Search, Past], None]:
        search, past = carry
        step, embedding = position
        rows = variants.distinct(search, past, step)
        past = _decode(decoder, memory, search, past, rows, embedding, step)
        search, parent = variants.extended(search, past.logits, rows, step)
        of_rows = (jnp.arange(num_variants)[:, None] * num_beams + parent).reshape(-1)
        past = dataclasses.replace(past, trail=past.trail[of_rows])
        return (search, past), None

    begin = start(config, config.num_slots, jnp.arange(num_beams) == 0)
    search = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_variants, *x.shape)), begin)
    carry = search, _no_past(decoder, num_variants * num_beams)
    positions = decoder.positions(config.num_slots)
    steps = jnp.arange(positions.shape[0])
    (search, past), _ = lax.scan(next_code, carry, (steps, positions))
    last = steps[config.num_layers - 1 :: config.num_layers]  # The last step of each slot.
    states = past.states[last[None], past.trail[:, last]]
    states = states.reshape(num_variants, num_beams, *states.shape[1:])
    return jax.vmap(finish, in_axes=(0, 0, None))(search, states, candidates)


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


def _decode(decoder, memory, search, past, rows, position, step) -> Past:
    """Runs the decoder at one position of all distinct prefixes, and writes their past."""
    config, chunk = decoder.config, search.log_prob.shape[1]
    layer = step % config.num_layers
    code = search.codes[:, :, step - 1].reshape(-1)

    def decode(rows: jax.Array, found: Decoded) -> Decoded:
        read = jnp.minimum(rows, code.size - 1)
        x = decoder.code_input(code[read], (layer - 1) % config.num_layers)
        x = jnp.where(step > 0, x, decoder.begin_input()[None]) + position[None]
        x, new = _step(decoder, memory, past, x, past.trail[read], step)
        rows_of = Decoded(new, x, decoder.poi_logits(x, layer))
        return jax.tree.map(lambda into, x: into.at[rows].set(x, mode="drop"), found, rows_of)

    # The caches are written once a step and not by chunk, as XLA would copy them for every chunk.
    at_step = lambda x: lax.dynamic_index_in_dim(x, step, keepdims=False)
    nothing = Decoded(jax.tree.map(at_step, past.cache), at_step(past.states), past.logits)
    found = fold_where(decode, rows.where, chunk, nothing)
    write = lambda into, x: lax.dynamic_update_index_in_dim(into, x, step, 0)
    return Past(
        cache=jax.tree.map(write, past.cache, found.new),
        states=write(past.states, found.states),
        logits=found.logits,
        trail=lax.dynamic_update_index_in_dim(past.trail, rows.first, step, 1),
    )


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
class Distinct:
    """The distinct prefixes of `R * S` beams."""

    first: jax.Array  # [R * S] int32 the first beam with each beam's prefix.
    where: jax.Array  # [R * S] bool, whether a beam is such.


@struct.dataclass
class Variants:
    """`R` variants of one request; a report changes at most one option of each prefix."""

    candidates: Candidates
    overlays: Overlay  # [R]
    alpha: chex.Numeric
    beta: chex.Numeric

    @property
    def absent_organic(self) -> jax.Array:
        """The organic item that each report leaves out, `[R]` int32, -1 for none."""
        return jnp.where(self.overlays.path[:, 0] >= 0, -1, self.overlays.candidate)

    def distinct(self, search: Search, past: Past, step: jax.Array) -> Distinct:
        """Finds the distinct prefixes before a step.

        Prefixes are equal if codes, their nodes and items are, and if the same organic item is
        absent. Items are new before the first code of a slot, nodes before the others.
        """
        t, layer = step // self.candidates.book.num_layers, step % self.candidates.book.num_layers
        before = past.trail[:, step - 1].reshape(search.log_prob.shape)
        code, node = search.codes[:, :, step - 1], search.nodes[:, :, step - 1]
        item = search.chosen[:, :, jnp.maximum(t - 1, 0)]
        parent = jnp.where(step > 0, before * past.logits.shape[1] + code, 0)
        last = jnp.where(step > 0, jnp.where(layer > 0, node, item), 0)
        live = search.log_prob > IMPOSSIBLE / 2
        absent = jnp.broadcast_to(self.absent_organic[:, None], last.shape)
        key = [jnp.where(live, parent, -1), last, absent]
        first = first_equal(jnp.stack(key, axis=-1).reshape(-1, len(key)))
        return Distinct(first, live.reshape(-1) & (first == jnp.arange(first.size)))

    def extended(
        self, search: Search, logits: jax.Array, rows: Distinct, step: jax.Array
    ) -> tuple[Search, jax.Array]:
        """Extends all beams by the code of a step; returns them and their parents `[R, S]`."""
        t, layer = step // self.candidates.book.num_layers, step % self.candidates.book.num_layers
        root = self.candidates.root
        prefix = jax.vmap(lambda search: prefix_of(search, root, t, layer))(search)
        own = rows.first.reshape(search.log_prob.shape)
        changed = jax.vmap(lambda *x: self._changed(layer, logits, *x))(self.overlays, prefix, own)
        best = self._best(layer, search, prefix, logits, rows, changed)

        def extend(search: Search, prefix: Prefix, overlay: Overlay, best: Continuations):
            variant = dataclasses.replace(self.candidates, overlay=overlay)
            parents = jax.tree.map(lambda x: x[best.parent], prefix)
            taken = variant.option(layer, parents, best.place)
            search = extended(search, best, taken.node[:, 0], taken.code[:, 0], step)
            return with_item(search, variant, t, layer)

        return jax.vmap(extend)(search, prefix, self.overlays, best), best.parent

    def _changed(self, layer, logits, overlay, prefix, own) -> tuple[jax.Array, jax.Array]:
        """Column and score, both `[S]`, of the option that the report of a variant changes."""
        variant = dataclasses.replace(self.candidates, overlay=overlay)
        column = variant.report_column(layer, prefix)
        option = variant.option(layer, prefix, column)
        of_code = logits[own[:, None], option.code]
        score = token_scores(of_code, option.bid, option.where, self.alpha, self.beta)
        return column, score[:, 0]

    def _best(self, layer, search, prefix, logits, rows, changed) -> Continuations:
        """The best continuations of all variants, by options as wide as any node needs."""
        widest = max(self.candidates.widths)
        at = lambda width: functools.partial(self._best_of, width, layer, rows)
        given = search, prefix, logits, changed
        if widest <= NARROW:
            return at(widest)(*given)
        count = self.candidates.book.children(prefix.node)[1]
        return lax.cond(count.max() > NARROW, at(widest), at(NARROW), *given)

    def _best_of(self, width, layer, rows, search, prefix, logits, changed) -> Continuations:
        """The best continuations, by options of a static width."""
        num_variants, num_beams = search.log_prob.shape
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prefix)
        absent = jnp.repeat(self.absent_organic, num_beams)

        def unreported(prefix: Prefix, logits: jax.Array, absent: jax.Array) -> jax.Array:
            """Scores `[F]` of one prefix's options without the reports of ads."""
            overlay = Overlay(absent, jnp.float32(ABSENT), jnp.full(flat.codes.shape[1], -1))
            variant = dataclasses.replace(self.candidates, overlay=overlay)
            options = variant.options(layer, jax.tree.map(lambda x: x[None], prefix), width)
            return option_scores(logits[None], options, self.alpha, self.beta)[0]

        pick = lambda row: jax.tree.map(lambda x: x[row], (flat, logits, absent))
        every = map_where(lambda row: jax.vmap(unreported)(*pick(row)), rows.where, num_beams)
        beam = jnp.arange(num_beams)

        def of_variant(search: Search, own: jax.Array, column: jax.Array, score: jax.Array):
            scores = every[own].at[beam, column].set(score, mode="drop")
            return best_continuations(search, log_probs_of(scores), num_beams)

        return jax.vmap(of_variant)(search, rows.first.reshape(num_variants, -1), *changed)
