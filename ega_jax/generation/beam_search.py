"""Constrained beam search over slates (paper sec. 4.3.2, eq. 23).

A `lax.scan` over slots; within a slot the `C` layers are unrolled, since a layer's options have
their own static shape. Scores are summed log allocation probabilities. Ties are broken by the
lower beam and then the lower place, so that results are deterministic. Written for one request;
`vmap` it over a batch.

Each beam holds its own past: beams that change their parent take over its row of every array. Rows
are long and contiguous, so that this costs less than looking the past up through pointers.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.generation.bidding import allocation_log_probs
from ega_jax.generation.candidates import Candidates, Options
from ega_jax.generation.generator import Generator, GeneratorConfig, Memory
from ega_jax.types import Params

_DEAD = -1e30


@struct.dataclass
class Cache:
    """A decoder block's past, laid out for one query per beam: both sums run over outer axes."""

    keys: jax.Array  # [S, H, D / H, L]
    values: jax.Array  # [S, L, H, D / H]


@struct.dataclass
class BeamState:
    """`S` partial slates; `L = K * C` decoding steps. Row `s` of every array is beam `s`."""

    log_prob: jax.Array  # [S] float32, below -1e29 for a beam that holds nothing.
    node: jax.Array  # [S] int32 node of the prefix in the candidates' index, -1 for none.
    chosen: jax.Array  # [S, K] int32 items so far, -1 where none.
    codes: jax.Array  # [S, L] int32 codes so far.
    log_z: jax.Array  # [S, L] float32 log allocation probability of each code.
    x: jax.Array  # [S, D] input of the next position, before its position embedding.
    states: jax.Array  # [S, K, D] decoder states at each slot's last code.
    cache: tuple[Cache, ...]  # One per block.


@struct.dataclass
class Beams:
    """`S` slates, best first."""

    items: jax.Array  # [S, K] int32 candidates (or catalogue items), -1 where a slot is empty.
    log_prob: jax.Array  # [S] float32 sum of `log_z`, below -1e29 where there is no slate.
    log_z: jax.Array  # [S, K, C] float32, 0 where a slot is empty.
    codes: jax.Array  # [S, K, C] int32, 0 where a slot is empty.
    states: jax.Array  # [S, K, D] POI decoder states, which the creative decoder reads.

    @property
    def where(self) -> jax.Array:
        """`[S]` bool, the beam holds a slate."""
        return self.log_prob > _DEAD / 2


def beam_search(
    params: Params,
    config: GeneratorConfig,
    memory: Memory,
    candidates: Candidates,
    *,
    num_beams: int,
    num_slots: int | None = None,
    alpha: chex.Numeric = 1.0,
    beta: chex.Numeric = 1.0,
) -> Beams:
    """Finds the most probable slates of one request.

    Nothing that the candidates do not offer is ever emitted. A slate ends early when nothing is
    on offer for its next slot.

    Args:
      params: the generator's parameters.
      config: its sizes.
      memory: the encoded history of one request, without a batch axis.
      candidates: what may be shown.
      num_beams: `S`, static.
      num_slots: `K`, length of the slates, static; by default that of the config, at most that.
      alpha: exponent of token bids (21).
      beta: floor of token weights (21).

    Returns:
      The slates, best first. With fewer possible slates than beams, the rest is not `where`.
    """
    model = Generator(config).bind({"params": params})
    num_slots = config.num_slots if num_slots is None else num_slots
    layers = range(config.num_layers)
    positions = model.positions(num_slots).reshape(num_slots, config.num_layers, config.width)

    def fill_slot(state: BeamState, inputs) -> tuple[BeamState, None]:
        t, position = inputs
        ended = (t > 0) & (state.chosen[:, t - 1] < 0)
        state = dataclasses.replace(state, node=jnp.where(ended, -1, 0))
        for layer in layers:
            step = t * config.num_layers + layer
            hidden, state = _decode(model, memory, state, position[layer], step)
            options = candidates.options(layer, state.node, state.chosen)
            log_z, options = _score(model, hidden, options, layer, alpha, beta)
            # The last layer's states are those that stay.
            state = dataclasses.replace(state, states=_write(state.states, hidden, t))
            state = _advance(model, state, log_z, options, layer, step)
        chosen = _write(state.chosen, candidates.item(state.node), t)
        return dataclasses.replace(state, chosen=chosen), None

    start = _start(model, num_beams, num_slots)
    state, _ = lax.scan(fill_slot, start, (jnp.arange(num_slots), positions))
    return _finish(state)


def _start(model: Generator, num_beams: int, num_slots: int) -> BeamState:
    """One live beam that holds nothing, and room for the rest."""
    config = model.config
    length = num_slots * config.num_layers
    heads = config.num_heads, config.width // config.num_heads
    cache = Cache(
        keys=jnp.zeros((num_beams, *heads, length), config.dtype),
        values=jnp.zeros((num_beams, length, *heads), config.dtype),
    )
    return BeamState(
        log_prob=jnp.full(num_beams, _DEAD).at[0].set(0.0),
        node=jnp.zeros(num_beams, jnp.int32),
        chosen=jnp.full((num_beams, num_slots), -1, jnp.int32),
        codes=jnp.zeros((num_beams, length), jnp.int32),
        log_z=jnp.zeros((num_beams, length)),
        x=jnp.broadcast_to(model.begin_input(), (num_beams, config.width)),
        states=jnp.zeros((num_beams, num_slots, config.width), config.dtype),
        cache=(cache,) * config.decoder_blocks,
    )


def _write(into: jax.Array, value: jax.Array, place: jax.Array, axis: int = 1) -> jax.Array:
    """Sets one place along an axis, as a slice in place rather than a scatter."""
    return lax.dynamic_update_index_in_dim(into, value.astype(into.dtype), place, axis)


def _decode(model, memory, state, position, step) -> tuple[jax.Array, BeamState]:
    """Runs the decoder at one position; returns its states `[S, D]` and the longer caches."""
    written = jnp.arange(state.codes.shape[1]) <= step
    x = state.x + position
    cache = []
    for block, past in enumerate(state.cache):
        new = model.block_keys_values(block, x)
        past = Cache(
            keys=_write(past.keys, new.keys, step, axis=-1),
            values=_write(past.values, new.values, step),
        )
        x = model.block_step(block, x, past.keys, past.values, written, memory)
        cache.append(past)
    return x, dataclasses.replace(state, cache=tuple(cache))


def _score(model, hidden, options, layer, alpha, beta) -> tuple[jax.Array, Options]:
    """Log allocation probabilities `[S, F]`; a beam without options carries on with nothing."""
    stuck = ~options.where.any(-1)
    where = options.where.at[:, 0].set(options.where[:, 0] | stuck)
    node = jnp.where(stuck[:, None], -1, options.node)
    code = jnp.where(stuck[:, None], 0, options.code)
    logits = jnp.take_along_axis(model.poi_logits(hidden, layer), code, axis=-1)
    log_z = allocation_log_probs(logits, options.bid, where, alpha, beta)
    return log_z, dataclasses.replace(options, node=node, code=code, where=where)


def _advance(model, state, log_z, options, layer, step) -> BeamState:
    """Keeps the best `S` of all beams' continuations."""
    num_beams, places = log_z.shape
    total = jnp.where(options.where, state.log_prob[:, None] + log_z, 2 * _DEAD)
    log_prob, flat = lax.top_k(total.reshape(-1), num_beams)
    parent, place = flat // places, flat % places
    code = options.code[parent, place]
    state = jax.tree.map(lambda x: x[parent], state)
    return dataclasses.replace(
        state,
        log_prob=jnp.maximum(log_prob, _DEAD),
        node=options.node[parent, place],
        codes=_write(state.codes, code, step),
        log_z=_write(state.log_z, log_z[parent, place], step),
        x=model.code_input(code, layer),
    )


def _finish(state: BeamState) -> Beams:
    """Lays the finished beams out by slot."""
    by_slot = (*state.chosen.shape, -1)
    return Beams(
        items=state.chosen,
        log_prob=state.log_prob,
        log_z=state.log_z.reshape(by_slot),
        codes=state.codes.reshape(by_slot),
        states=state.states,
    )
