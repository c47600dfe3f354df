"""Constrained beam search over slates (paper sec. 4.3.2, eq. 23), and samples of the same policy.

The search is a `lax.scan` over slots, and over layers whose options have the same static width, so
that the step is compiled rarely. Caches grow with the slates. A beam's score is the sum of its log
allocation probabilities. Ties go to the lower beam, then to the lower option, so results are
deterministic. The search handles one request; `vmap` it over a batch.

Each beam stores its own past: after a step, every array is gathered by parent beam. Rows are long
and contiguous, so this gather costs less than looking up the past through back-pointers.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.generation.bidding import token_scores
from ega_jax.generation.decoder import Decoder, DecoderSizes
from ega_jax.generation.slate_space import Options, Prefix, SlateSpace
from ega_jax.types import IMPOSSIBLE

T = TypeVar("T")

GROWTH = 6  # Slots by which caches grow; the scan body is compiled once per cache size.

Carry = tuple["Search", "Past"]
Proceed = Callable[["Search", jax.Array, jax.Array], "Continuations"]


@struct.dataclass
class Search:
    """`S` partial slates; `L = K * C` decoding steps. Row `s` of every array is beam `s`."""

    log_prob: jax.Array  # [S] float32, below -1e29 for an unused beam.
    chosen: jax.Array  # [S, K] int32 items so far, -1 in slots without item.
    codes: jax.Array  # [S, L] int32 codes so far.
    nodes: jax.Array  # [S, L] int32 the candidates' node of each code, -1 for none.
    log_z: jax.Array  # [S, L] float32 log allocation probability of each code.


@struct.dataclass
class Cache:
    """A decoder block's key/value cache, laid out for `Attention.one_query_each`."""

    keys: jax.Array  # [S, H, D / H, L], L positions, both written and still free.
    values: jax.Array  # [S, L, H, D / H]


@struct.dataclass
class Past:
    """The decoder's state for each beam."""

    x: jax.Array  # [S, D] input of the next position, before its position embedding is added.
    cache: tuple[Cache, ...]  # One per block.
    states: jax.Array  # [S, K, D] decoder states at the last code so far of each slot.


@struct.dataclass
class Beams:
    """`S` slates, best first."""

    items: jax.Array  # [S, K] int32 candidates (or catalogue items), -1 in empty slots.
    log_prob: jax.Array  # [S] float32 sum of `log_z`, below -1e29 for an unused beam.
    log_z: jax.Array  # [S, K, C] float32, 0 in empty slots.
    codes: jax.Array  # [S, K, C] int32, 0 in empty slots.
    states: jax.Array  # [S, K, D] POI decoder states, which the creative decoder reads.

    @property
    def where(self) -> jax.Array:
        """`[S]` bool, whether the beam holds a slate."""
        return self.log_prob > IMPOSSIBLE / 2


def beam_search(
    decoder: Decoder,
    memory: Any,
    candidates: SlateSpace,
    *,
    num_beams: int,
    num_slots: int | None = None,
    alpha: chex.Numeric = 1.0,
    beta: chex.Numeric = 1.0,
) -> Beams:
    """Searches for the most probable slates of one request.

    Slates contain only items offered by `candidates`. A slate ends early if no candidate is
    available for its next slot.

    Args:
      decoder: the generator.
      memory: the encoded history of one request, without a batch axis.
      candidates: the items that may be shown.
      num_beams: `S`, static.
      num_slots: `K`, length of the slates, static; by default and at most that of the decoder.
      alpha: exponent of token bids (21).
      beta: floor of token weights (21).

    Returns:
      The slates, best first. If fewer than `S` slates are possible, `where` is False for the
      remaining beams.
    """
    num_slots = decoder.config.num_slots if num_slots is None else num_slots
    # A single slot is unrolled, so one beam may start it.
    live = jnp.arange(1 if num_slots == 1 else num_beams) == 0
    proceed = lambda search, log_z, _: best_continuations(search, log_z, num_beams)
    return _search(decoder, memory, candidates, live, proceed, num_slots, alpha, beta)


def sample_slates(
    decoder: Decoder,
    memory: Any,
    candidates: SlateSpace,
    key: chex.PRNGKey,
    *,
    num_samples: int,
    alpha: chex.Numeric = 1.0,
    beta: chex.Numeric = 1.0,
) -> Beams:
    """Draws slates of one request from the policy, code by code by probability (22).

    The draws are independent, so a slate may be drawn more than once.

    Args:
      decoder: the generator.
      memory: the encoded history of one request, without a batch axis.
      candidates: the items that may be shown.
      key: random key.
      num_samples: number of slates, static.
      alpha: exponent of token bids (21).
      beta: floor of token weights (21).

    Returns:
      The slates as they were drawn, in place of the `S` beams.
    """
    live = jnp.ones(num_samples, bool)
    proceed = lambda search, log_z, number: drawn_continuations(
        search, log_z, jax.random.fold_in(key, number)
    )
    num_slots = decoder.config.num_slots
    return _search(decoder, memory, candidates, live, proceed, num_slots, alpha, beta)


def _search(
    decoder: Decoder,
    memory: Any,
    candidates: SlateSpace,
    live: jax.Array,
    proceed: Proceed,
    num_slots: int,
    alpha: chex.Numeric,
    beta: chex.Numeric,
) -> Beams:
    """Extends empty slates code by code; see `beam_search`.

    `live [S]` tells which rows start with an empty slate; the others are unused beams. `proceed`
    chooses the continuations from the slates so far, the log-probabilities `[S, F]` of their
    options, and the number of the decoding step.
    """
    config = decoder.config
    positions = decoder.positions(num_slots).reshape(num_slots, config.num_layers, config.width)

    def next_code(carry: Carry, step: tuple[Any, Any, jax.Array], width: int) -> Carry:
        """Extends the beams by the code of one layer of one slot."""
        search, past = carry
        t, layer, position = step
        number = t * config.num_layers + layer
        hidden, past = _decode(decoder, memory, past, position, number, t)
        options = candidates.options(layer, prefix_of(search, candidates.root, t, layer), width)
        scores = option_scores(decoder.poi_logits(hidden, layer), options, alpha, beta)
        best = proceed(search, log_probs_of(scores), number)
        node, code = (x[best.parent, best.place] for x in (options.node, options.code))
        search = with_item(extended(search, best, node, code, number), candidates, t, layer)
        x = decoder.code_input(search.codes[:, number], layer)
        return search, dataclasses.replace(_rows(past, best.parent), x=x)

    carry = start(config, num_slots, live), _no_past(decoder, num_slots, len(live))
    if num_slots == 1:
        for layer, width in enumerate(candidates.widths):
            carry = next_code(carry, (0, layer, positions[0, layer]), width)
        return finish(carry[0], carry[1].states, candidates)
    fill_slot = functools.partial(_fill_slot, next_code, candidates.widths)
    for first in range(0, num_slots, GROWTH):
        last = min(first + GROWTH, num_slots)
        carry = carry[0], _with_room(carry[1], last * config.num_layers)
        carry, _ = lax.scan(fill_slot, carry, (jnp.arange(first, last), positions[first:last]))
    return finish(carry[0], carry[1].states, candidates)


def _fill_slot(
    next_code: Callable[..., Carry],
    widths: tuple[int, ...],
    carry: Carry,
    slot: tuple[jax.Array, jax.Array],
) -> tuple[Carry, None]:
    """Extends the beams by one item; layers whose options have one width share a compiled step."""
    t, position = slot
    for width, run in itertools.groupby(range(len(widths)), key=lambda layer: widths[layer]):
        layers = list(run)
        steps = jnp.full(len(layers), t), jnp.array(layers), position[layers[0] : layers[-1] + 1]
        if len(layers) == 1:
            carry = next_code(carry, jax.tree.map(lambda x: x[0], steps), width)
        else:
            carry, _ = lax.scan(lambda c, x, w=width: (next_code(c, x, w), None), carry, steps)
    return carry, None


def start(config: DecoderSizes, num_slots: int, live: jax.Array) -> Search:
    """The initial state: an empty slate where `live [S]`, and unused beams elsewhere."""
    length, num_beams = num_slots * config.num_layers, len(live)
    return Search(
        log_prob=jnp.where(live, 0.0, IMPOSSIBLE),
        chosen=jnp.full((num_beams, num_slots), -1, jnp.int32),
        codes=jnp.zeros((num_beams, length), jnp.int32),
        nodes=jnp.full((num_beams, length), -1, jnp.int32),
        log_z=jnp.zeros((num_beams, length)),
    )


def prefix_of(search: Search, root: jax.Array, t: chex.Numeric, depth: chex.Numeric) -> Prefix:
    """The prefixes of the beams in slot `t`, with `depth` codes of it."""
    beams, slots = search.chosen.shape
    codes, nodes = (x.reshape(beams, slots, -1) for x in (search.codes, search.nodes))
    live = search.log_prob > IMPOSSIBLE / 2
    live &= (t == 0) | (search.chosen[:, t - 1] >= 0)
    node = jnp.where(depth > 0, nodes[:, t, depth - 1], root)
    return Prefix(
        node=jnp.where(live, node, -1),
        codes=codes[:, t],
        chosen=search.chosen,
        nodes=nodes,
        live=live,
    )


def with_item(
    search: Search, candidates: SlateSpace, t: chex.Numeric, layer: chex.Numeric
) -> Search:
    """Adds the items of full codes: those of slot `t` if `layer` is the last one."""
    num_layers = search.codes.shape[1] // search.chosen.shape[1]
    item = candidates.item(prefix_of(search, candidates.root, t, num_layers))
    item = jnp.where(layer == num_layers - 1, item, -1)
    return dataclasses.replace(search, chosen=_write(search.chosen, item, t))


def _no_past(decoder: Decoder, num_slots: int, num_beams: int) -> Past:
    """The decoder's past of the initial beams, with caches for one slot."""
    config = decoder.config
    heads = config.num_heads, config.width // config.num_heads
    cache = Cache(
        keys=jnp.zeros((num_beams, *heads, config.num_layers), config.dtype),
        values=jnp.zeros((num_beams, config.num_layers, *heads), config.dtype),
    )
    return Past(
        x=jnp.broadcast_to(decoder.begin_input(), (num_beams, config.width)),
        cache=(cache,) * config.decoder_blocks,
        states=jnp.zeros((num_beams, num_slots, config.width), config.dtype),
    )


def _with_room(past: Past, length: int) -> Past:
    """Extends the caches to `length` positions."""
    more = (0, length - past.cache[0].values.shape[1])
    none = (0, 0)
    longer = lambda cache: Cache(
        keys=jnp.pad(cache.keys, (none, none, none, more)),
        values=jnp.pad(cache.values, (none, more, none, none)),
    )
    return dataclasses.replace(past, cache=tuple(map(longer, past.cache)))


def _write(into: jax.Array, value: jax.Array, place: chex.Numeric, axis: int = 1) -> jax.Array:
    """Sets one index of an axis, by an in-place slice update instead of a scatter."""
    return lax.dynamic_update_index_in_dim(into, value.astype(into.dtype), place, axis)


def _rows(arrays: T, rows: jax.Array) -> T:
    """Gathers rows of every array."""
    return jax.tree.map(lambda x: x[rows], arrays)


def _decode(decoder, memory, past, position, step, t) -> tuple[jax.Array, Past]:
    """Runs the decoder at one position; returns the states `[S, D]` and the updated past."""
    written = jnp.arange(past.cache[0].values.shape[1]) <= step
    x = past.x + position
    cache = []
    for block, before in enumerate(past.cache):
        new = decoder.block_keys_values(block, x)
        keys = _write(before.keys, new.keys, step, axis=-1)
        values = _write(before.values, new.values, step)
        x = decoder.block_step(block, x, keys, values, written, memory)
        cache.append(Cache(keys=keys, values=values))
    # All layers of a slot write to the same entry, so the state at the slot's last code remains.
    return x, dataclasses.replace(past, cache=tuple(cache), states=_write(past.states, x, t))


def option_scores(
    logits: jax.Array, options: Options, alpha: chex.Numeric, beta: chex.Numeric
) -> jax.Array:
    """Token scores `[S, F]` of options, from logits `[S, W]` of their layer."""
    of_codes = jnp.take_along_axis(logits, options.code, axis=-1)
    return token_scores(of_codes, options.bid, options.where, alpha, beta)


def log_probs_of(scores: jax.Array) -> jax.Array:
    """Log allocation probabilities (22) from token scores, both `[S, F]`.

    A beam without options takes the first one for certain, which has no node and code 0. So it
    survives unchanged.
    """
    where = scores > IMPOSSIBLE / 2
    log_z = jnp.where(where, jax.nn.log_softmax(scores, axis=-1), IMPOSSIBLE)
    return log_z.at[:, 0].set(jnp.where(where.any(-1), log_z[:, 0], 0.0))


@struct.dataclass
class Continuations:
    """The best continuations of all beams, `[S]` each."""

    log_prob: jax.Array  # float32, below -1e29 for none.
    parent: jax.Array  # int32 the beam that is continued.
    place: jax.Array  # int32 its option.
    log_z: jax.Array  # float32 log allocation probability of the option.


def best_continuations(search: Search, log_z: jax.Array, num_beams: int) -> Continuations:
    """Picks the best from `log_z [S, F]`, -1e30 for what is no option."""
    beams, places = log_z.shape
    total = jnp.where(log_z > IMPOSSIBLE / 2, search.log_prob[:, None] + log_z, 2 * IMPOSSIBLE)
    total = total.reshape(-1)
    total = jnp.pad(total, (0, max(num_beams - total.size, 0)), constant_values=2 * IMPOSSIBLE)
    log_prob, flat = lax.top_k(total, num_beams)
    parent, place = jnp.minimum(flat // places, beams - 1), flat % places
    return Continuations(log_prob, parent, place, log_z[parent, place])


def drawn_continuations(search: Search, log_z: jax.Array, key: chex.PRNGKey) -> Continuations:
    """Continues every beam by one option, drawn from its `log_z [S, F]`."""
    beams = jnp.arange(log_z.shape[0])
    place = jax.random.categorical(key, log_z)
    drawn = log_z[beams, place]
    return Continuations(search.log_prob + drawn, beams, place, drawn)


def extended(
    search: Search, best: Continuations, node: jax.Array, code: jax.Array, step: chex.Numeric
) -> Search:
    """The beams of continuations with the nodes and codes `[S]` of their options."""
    live = best.log_prob > IMPOSSIBLE / 2
    search = _rows(search, best.parent)
    return dataclasses.replace(
        search,
        log_prob=jnp.maximum(best.log_prob, IMPOSSIBLE),
        codes=_write(search.codes, jnp.where(live, code, 0), step),
        nodes=_write(search.nodes, jnp.where(live, node, -1), step),
        log_z=_write(search.log_z, jnp.where(live, best.log_z, 0.0), step),
    )


def finish(search: Search, states: jax.Array, candidates: SlateSpace) -> Beams:
    """Reshapes the finished beams by slot and adds the decoder's states `[S, K, D]`."""
    by_slot = (*search.chosen.shape, -1)
    return Beams(
        items=candidates.ids(search.chosen),
        log_prob=search.log_prob,
        log_z=search.log_z.reshape(by_slot),
        codes=search.codes.reshape(by_slot),
        states=states,
    )
