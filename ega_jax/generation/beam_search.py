"""Constrained beam search over slates (paper sec. 4.3.2, eq. 23).

The search is a `lax.scan` over slots. Within a slot the `C` layers are unrolled, since each layer's
options have their own static shape. Two measures avoid work on entries that are not filled yet: the
first slot is decoded before the scan, because it starts from one beam instead of `S`, and caches
grow with the slates. A beam's score is the sum of its log allocation probabilities. Ties go to the
lower beam, then to the lower option, so results are deterministic. The search handles one request;
`vmap` it over a batch.

Each beam stores its own past: after a step, every array is gathered by parent beam. Rows are long
and contiguous, so this gather costs less than looking up the past through back-pointers.
"""

import dataclasses
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.generation.bidding import allocation_log_probs
from ega_jax.generation.candidates import Options, Prefix, SlateSpace
from ega_jax.generation.decoder import Decoder, DecoderSizes
from ega_jax.types import IMPOSSIBLE

T = TypeVar("T")

GROWTH = 5  # Slots by which caches grow; the scan body is compiled once per cache size.


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
    config = decoder.config
    num_slots = config.num_slots if num_slots is None else num_slots
    positions = decoder.positions(num_slots).reshape(num_slots, config.num_layers, config.width)

    def fill_slot(carry: tuple[Search, Past], slot) -> tuple[tuple[Search, Past], None]:
        search, past = carry
        t, position = slot
        for layer in range(config.num_layers):
            step = t * config.num_layers + layer
            hidden, past = _decode(decoder, memory, past, position[layer], step, t)
            options = candidates.options(layer, prefix_of(search, candidates.root, t, layer))
            log_z, options = score(decoder.poi_logits(hidden, layer), options, alpha, beta)
            search, parent = advance(search, log_z, options, step, num_beams)
            past = dataclasses.replace(
                _rows(past, parent), x=decoder.code_input(search.codes[:, step], layer)
            )
        item = candidates.item(prefix_of(search, candidates.root, t, config.num_layers))
        chosen = _write(search.chosen, item, t)
        return (dataclasses.replace(search, chosen=chosen), past), None

    carry = start(config, num_slots), _no_past(decoder, num_slots)
    (search, past), _ = fill_slot(carry, (0, positions[0]))
    for first in range(1, num_slots, GROWTH):
        last = min(first + GROWTH, num_slots)
        carry = search, _with_room(past, last * config.num_layers)
        slots = jnp.arange(first, last), positions[first:last]
        (search, past), _ = lax.scan(fill_slot, carry, slots)
    return finish(search, past.states, candidates)


def start(config: DecoderSizes, num_slots: int) -> Search:
    """The initial state: one beam with an empty slate."""
    length = num_slots * config.num_layers
    return Search(
        log_prob=jnp.zeros(1),
        chosen=jnp.full((1, num_slots), -1, jnp.int32),
        codes=jnp.zeros((1, length), jnp.int32),
        nodes=jnp.full((1, length), -1, jnp.int32),
        log_z=jnp.zeros((1, length)),
    )


def prefix_of(search: Search, root: jax.Array, t: chex.Numeric, depth: int) -> Prefix:
    """The prefixes of the beams at a static depth of slot `t`."""
    beams, slots = search.chosen.shape
    by_slot = lambda x: x.reshape(beams, slots, -1)
    codes, nodes = by_slot(search.codes), by_slot(search.nodes)
    live = search.log_prob > IMPOSSIBLE / 2
    live &= (t == 0) | (search.chosen[:, t - 1] >= 0)
    node = nodes[:, t, depth - 1] if depth else jnp.broadcast_to(root, beams)
    return Prefix(
        node=jnp.where(live, node, -1),
        codes=codes[:, t],
        chosen=search.chosen,
        nodes=nodes,
        live=live,
    )


def _no_past(decoder: Decoder, num_slots: int) -> Past:
    """The decoder's past for the initial beam, with caches for one slot."""
    config = decoder.config
    heads = config.num_heads, config.width // config.num_heads
    cache = Cache(
        keys=jnp.zeros((1, *heads, config.num_layers), config.dtype),
        values=jnp.zeros((1, config.num_layers, *heads), config.dtype),
    )
    return Past(
        x=decoder.begin_input()[None],
        cache=(cache,) * config.decoder_blocks,
        states=jnp.zeros((1, num_slots, config.width), config.dtype),
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


def score(
    logits: jax.Array, options: Options, alpha: chex.Numeric, beta: chex.Numeric
) -> tuple[jax.Array, Options]:
    """Log allocation probabilities `[S, F]` of options, from logits `[S, W]` of their layer.

    A beam without options gets one null option (node -1, code 0), so that it survives unchanged.
    """
    stuck = ~options.where.any(-1)
    where = options.where.at[:, 0].set(options.where[:, 0] | stuck)
    node = jnp.where(stuck[:, None], -1, options.node)
    code = jnp.where(stuck[:, None], 0, options.code)
    logits = jnp.take_along_axis(logits, code, axis=-1)
    log_z = allocation_log_probs(logits, options.bid, where, alpha, beta)
    return log_z, dataclasses.replace(options, node=node, code=code, where=where)


def advance(
    search: Search, log_z: jax.Array, options: Options, step: chex.Numeric, num_beams: int
) -> tuple[Search, jax.Array]:
    """Keeps the best `num_beams` continuations of all beams.

    Args:
      search: the beams; their number may differ from `num_beams`.
      log_z: `[S, F]` log allocation probabilities of the options; see `score`.
      options: the possible next codes.
      step: decoding step at which the new codes are stored.
      num_beams: number of beams to keep, static; beams beyond the number of continuations are
        unused.

    Returns:
      The beams, best first, and the index of each beam's parent, `[num_beams]`.
    """
    beams, places = log_z.shape
    total = jnp.where(options.where, search.log_prob[:, None] + log_z, 2 * IMPOSSIBLE).reshape(-1)
    total = jnp.pad(total, (0, max(num_beams - total.size, 0)), constant_values=2 * IMPOSSIBLE)
    log_prob, flat = lax.top_k(total, num_beams)
    parent, place = jnp.minimum(flat // places, beams - 1), flat % places
    live = log_prob > IMPOSSIBLE / 2
    pick = lambda of, nothing: jnp.where(live, of[parent, place], nothing)
    search = _rows(search, parent)
    search = dataclasses.replace(
        search,
        log_prob=jnp.maximum(log_prob, IMPOSSIBLE),
        codes=_write(search.codes, pick(options.code, 0), step),
        nodes=_write(search.nodes, pick(options.node, -1), step),
        log_z=_write(search.log_z, pick(log_z, 0.0), step),
    )
    return search, parent


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
