"""From a request to a slate: token bids, beam search, choice by the reward model (sec. 4.3.1-2).

Everything that bids cannot change is computed once per request (`prepare`), so that the many
re-allocations which regret asks for pay for the search alone. A bid enters in two places: in the
weights of tokens (21), and in the value of the slates that the search found (24).

Written for one request; `vmap` it over a batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.generation import generator
from ega_jax.generation.beam_search import Beams, beam_search
from ega_jax.generation.candidates import RequestCandidates, request_candidates
from ega_jax.generation.compaction import map_distinct
from ega_jax.generation.creatives import choose_creatives
from ega_jax.generation.generator import GeneratorConfig, Memory, codes_of
from ega_jax.generation.joint_search import joint_search
from ega_jax.reward import model as reward_model
from ega_jax.reward.model import Items, Predictions, RewardConfig
from ega_jax.types import Params, Request

_NONE = -1e30
_WINNERS_AT_ONCE = 4  # Winning slates of variants are few: most variants share one.


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """What is compiled into any system: sizes of the reward model that judges its slates."""

    reward: RewardConfig


@dataclasses.dataclass(frozen=True)
class AllocationConfig(SystemConfig):
    """What is compiled in; see `Levers` for what is not."""

    generator: GeneratorConfig
    num_beams: int = 32  # S
    token_bid: str = "max"  # max or mean, see `request_candidates`.
    scope: str = "prefix"  # prefix or layer.


@struct.dataclass
class Levers:
    """What an operator may change from request to request without recompiling; all scalars."""

    alpha: chex.Numeric = 1.2  # How much bids matter (21).
    beta: chex.Numeric = 2.0  # Floor of token weights (21); lifts organic content.
    kappa: chex.Numeric = 0.0  # Currency that one expected click is worth beside its price.
    reserve: chex.Numeric = 0.0  # Least bid and least price per click, in currency.
    max_ads: chex.Numeric = 2**30  # Most ads in a slate.
    min_gap: chex.Numeric = 0  # Fewest organic items between two ads.
    bid_free: chex.Numeric = False  # The search ignores bids: a menu that nobody can influence.


@struct.dataclass
class SystemModels:
    """The reward model that judges any system's slates, and what is known of the items."""

    reward: Params
    items: Items


@struct.dataclass
class Models(SystemModels):
    """Parameters of generator and reward model, and what they know of the items."""

    generator: Params


@struct.dataclass
class Offer:
    """One request, as far as bids cannot change it."""

    memory: Any  # What the system's own search reads of the request; here the encoded history.
    reward_memory: reward_model.Memory
    item: jax.Array  # [N] int32 POI ids, -1 padding; organic ones in upstream order.
    is_ad: jax.Array  # [N] bool.
    creative: jax.Array  # [N] int32 creative of a candidate when nothing stands around it.
    quality: jax.Array  # [N] float32 click probability of a candidate alone in the first slot.


@struct.dataclass
class Menu:
    """The slates that the search found, scored; the best of them is shown."""

    candidate: jax.Array  # [S, K] int32 candidates, -1 where a slot is empty.
    pctr: jax.Array  # [S, K] float32 click probabilities, 0 in empty slots.
    value: jax.Array  # [S] float32 expected currency, -1e30 where there is no slate.
    where: jax.Array  # [S] bool, there is a slate.
    log_z: jax.Array  # [S, K] float32 log allocation probability of an item's codes together.
    states: jax.Array  # [S, K, D] what creatives are chosen by, once the slate has won.


@struct.dataclass
class Allocation:
    """What is shown for one request."""

    candidate: jax.Array  # [K] int32 candidates, -1 where a slot is empty.
    item: jax.Array  # [K] int32 POI ids, -1 likewise.
    creative: jax.Array  # [K] int32, -1 where none.
    is_ad: jax.Array  # [K] bool.
    bid: jax.Array  # [K] float32 currency per click, 0 for organic items.
    log_z: jax.Array  # [K] float32 as in the menu.
    prediction: Predictions  # Of the slate with these creatives, all [K].


@functools.singledispatch
def prepare(models: SystemModels, config: SystemConfig, request: Request) -> Offer:
    """Computes what bids cannot change: encoded histories, and each candidate on its own.

    Like `allocate` and `allocate_each` it goes by the type of `models`: a system that allocates in
    its own way registers these three, and is priced, trained and judged by the same code.

    Args:
      models: of a system; for EGA generator, reward model, items.
      config: its sizes.
      request: one request, without a batch axis; its bids are not read.

    Returns:
      The offer.
    """
    raise NotImplementedError(type(models))


@prepare.register(Models)
def _(models: Models, config: AllocationConfig, request: Request) -> Offer:
    history = request.history_poi, request.history_creative
    memory = generator.encode(models.generator, config.generator, *history, models.items.catalogue)
    alone = request.item[:, None]
    states = _first_states(models, config, memory, alone)
    creative = choose_creatives(
        models.generator, config.generator, memory, states, alone, models.items.catalogue
    )
    return offer_with(models, config, request, memory, creative[:, 0])


def offer_with(
    models: Models,
    config: AllocationConfig,
    request: Request,
    memory: Memory,
    creative: jax.Array,
) -> Offer:
    """The offer of a request whose candidates, when nothing stands around them, show `creative`.

    Args:
      models: generator, reward model, items.
      config: sizes.
      request: one request.
      memory: its encoded history.
      creative: `[N]` int32 of each candidate.
    """
    history = request.history_poi, request.history_creative
    reward_memory = reward_model.encode(
        models.reward, config.reward, models.items, *history, request.item
    )
    alone = request.item[:, None], creative[:, None], request.is_ad[:, None]
    prediction = reward_model.predict(
        models.reward, config.reward, models.items, reward_memory, *alone
    )
    return Offer(
        memory=memory,
        reward_memory=reward_memory,
        item=request.item,
        is_ad=request.is_ad & (request.item >= 0),
        creative=creative,
        quality=prediction.click_poi[:, 0],
    )


def _first_states(models, config, memory, alone):
    """POI decoder states `[N, 1, D]` of each candidate as the only item of a slate."""
    codes = codes_of(models.items.catalogue.poi_codes, alone)
    states = generator.apply(
        models.generator, config.generator, lambda g: g.poi_states(memory, codes)
    )
    return states[:, :, -1]


def candidates_of(config: AllocationConfig, levers: Levers) -> Callable[..., RequestCandidates]:
    """Returns `request_candidates` with the settings of an allocation: limits, reserve, bids."""

    def index(codes, is_ad, bid, where) -> RequestCandidates:
        return request_candidates(
            codes,
            is_ad,
            jnp.where(levers.bid_free, 0.0, bid),
            where & (~is_ad | (bid >= levers.reserve)),
            max_ads=levers.max_ads,
            min_gap=levers.min_gap,
            token_bid=config.token_bid,
            scope=config.scope,
        )

    return index


def find_menu(
    models: Models,
    config: AllocationConfig,
    offer: Offer,
    bid: jax.Array,
    levers: Levers,
    banned: chex.Numeric = -1,
) -> Menu:
    """Searches slates and scores them by the reward model (23)-(24).

    A slate's value is `sum b_i * pctr_i + kappa * sum pctr_i`, with each item's creative chosen
    as if it stood alone: the slate's own creatives are chosen once it has won.

    Args:
      models: generator, reward model, items.
      config: sizes.
      offer: the request.
      bid: `[N]` float32 currency per click, 0 for organic items.
      levers: run-time settings.
      banned: a candidate that may not be shown.

    Returns:
      The menu, in the order of the search.
    """
    codes = codes_of(models.items.catalogue.poi_codes, offer.item)
    where = (offer.item >= 0) & (jnp.arange(bid.shape[0]) != banned)
    candidates = candidates_of(config, levers)(codes, offer.is_ad, bid, where)
    beams = beam_search(
        models.generator,
        config.generator,
        offer.memory,
        candidates,
        num_beams=config.num_beams,
        alpha=levers.alpha,
        beta=levers.beta,
    )
    creative = pick(offer.creative, beams.items, -1)
    pctr = predict(models, config, offer, beams.items, creative).click_poi
    return _menu(beams, pctr, bid, levers)


def find_menus(
    models: Models,
    config: AllocationConfig,
    offer: Offer,
    bid: jax.Array,
    levers: Levers,
    banned: jax.Array | None = None,
) -> Menu:
    """What `find_menu` finds for `R` variants of a request, sharing what they have in common.

    Args:
      models: generator, reward model, items.
      config: sizes.
      offer: the request.
      bid: `[R, N]` float32 currency per click, 0 for organic items.
      levers: run-time settings.
      banned: `[R]` int32 a candidate that may not be shown in a variant; none by default.

    Returns:
      The menus; every field has a leading axis `R`.
    """
    codes = codes_of(models.items.catalogue.poi_codes, offer.item)
    places = jnp.arange(offer.item.shape[0])
    where = jnp.broadcast_to(offer.item >= 0, bid.shape)
    if banned is not None:
        where &= places != banned[:, None]
    index = candidates_of(config, levers)
    beams = joint_search(
        models.generator,
        config.generator,
        offer.memory,
        jax.vmap(lambda b, w: index(codes, offer.is_ad, b, w))(bid, where),
        num_beams=config.num_beams,
        alpha=levers.alpha,
        beta=levers.beta,
    )
    slates = beams.items.reshape(-1, beams.items.shape[-1])

    def judge(rows: jax.Array) -> jax.Array:
        creative = pick(offer.creative, slates[rows], -1)
        return predict(models, config, offer, slates[rows], creative).click_poi

    pctr = map_distinct(judge, slates, beams.where.reshape(-1), chunk=config.num_beams)
    menu = jax.vmap(_menu, in_axes=(0, 0, 0, None))
    return menu(beams, pctr.reshape(beams.items.shape), bid, levers)


def _menu(beams: Beams, pctr: jax.Array, bid: jax.Array, levers: Levers) -> Menu:
    value = slate_value(pick(bid, beams.items, 0.0), pctr, levers.kappa)
    return Menu(
        candidate=beams.items,
        pctr=pctr,
        value=jnp.where(beams.where, value, _NONE),
        where=beams.where,
        log_z=beams.log_z.sum(-1),
        states=beams.states,
    )


def slate_value(bid: jax.Array, pctr: jax.Array, kappa: chex.Numeric) -> jax.Array:
    """What slates are worth in currency: `sum b * pctr + kappa * sum pctr` over the last axis."""
    return jnp.sum((bid + kappa) * pctr, axis=-1)


@functools.singledispatch
def allocate(
    models: SystemModels,
    config: SystemConfig,
    offer: Offer,
    bid: jax.Array,
    levers: Levers,
) -> tuple[Allocation, Menu]:
    """The slate shown for one request, with its creatives, and the menu it was chosen from.

    Args:
      models: see `prepare`.
      config: likewise.
      offer: the request, from `prepare`.
      bid: `[N]` float32 currency per click, at least 0, 0 for organic items.
      levers: run-time settings.

    Returns:
      The allocation and the menu. Where the menu was searched without bids, creatives stay those
      of the menu, so that nothing about a slate depends on bids but its choice.
    """
    raise NotImplementedError(type(models))


@allocate.register(Models)
def _(
    models: Models, config: AllocationConfig, offer: Offer, bid: jax.Array, levers: Levers
) -> tuple[Allocation, Menu]:
    menu = find_menu(models, config, offer, bid, levers)
    best = jnp.argmax(menu.value)
    shown = _show(models, config, offer, levers, menu.candidate[best], menu.states[best])
    return allocation_of(offer, bid, menu, best, *shown), menu


@functools.singledispatch
def allocate_each(
    models: SystemModels,
    config: SystemConfig,
    offer: Offer,
    bid: jax.Array,
    levers: Levers,
    banned: jax.Array | None = None,
) -> tuple[Allocation, Menu]:
    """What `allocate` gives for `R` bid vectors `[R, N]`, sharing what they have in common.

    Args as `allocate`'s and, for each bid vector, a candidate `[R]` that may not be shown.

    Returns:
      The allocations and menus; every field has a leading axis `R`.
    """
    raise NotImplementedError(type(models))


@allocate_each.register(Models)
def _(
    models: Models,
    config: AllocationConfig,
    offer: Offer,
    bid: jax.Array,
    levers: Levers,
    banned: jax.Array | None = None,
) -> tuple[Allocation, Menu]:
    menu = find_menus(models, config, offer, bid, levers, banned)
    best = jnp.argmax(menu.value, axis=-1)
    variant = jnp.arange(bid.shape[0])
    slates, states = menu.candidate[variant, best], menu.states[variant, best]
    show = jax.vmap(lambda row: _show(models, config, offer, levers, slates[row], states[row]))
    everywhere = jnp.ones(bid.shape[0], bool)
    shown = map_distinct(show, slates, everywhere, chunk=_WINNERS_AT_ONCE)
    allocation = jax.vmap(lambda *x: allocation_of(offer, *x))(bid, menu, best, *shown)
    return allocation, menu


def _show(models, config, offer, levers, candidate, states) -> tuple[jax.Array, Predictions]:
    """Creatives `[K]` of a slate that has won, and what users will do with it."""
    in_context = choose_creatives(
        models.generator,
        config.generator,
        offer.memory,
        states,
        pick(offer.item, candidate, -1),
        models.items.catalogue,
    )
    creative = jnp.where(levers.bid_free, pick(offer.creative, candidate, -1), in_context)
    return creative, predict(models, config, offer, candidate, creative)


def allocation_of(
    offer: Offer,
    bid: jax.Array,
    menu: Menu,
    best: chex.Numeric,
    creative: jax.Array,
    prediction: Predictions,
) -> Allocation:
    """The slate `best []` of a menu as what is shown, with its creatives and their prediction."""
    candidate = menu.candidate[best]
    return Allocation(
        candidate=candidate,
        item=pick(offer.item, candidate, -1),
        creative=creative,
        is_ad=pick(offer.is_ad, candidate, False),
        bid=pick(bid, candidate, 0.0),
        log_z=menu.log_z[best],
        prediction=prediction,
    )


def predict(
    models: SystemModels,
    config: SystemConfig,
    offer: Offer,
    candidate: jax.Array,
    creative: jax.Array,
) -> Predictions:
    """The reward model's view of slates of candidates `[..., K]` with creatives `[..., K]`."""
    return reward_model.predict(
        models.reward,
        config.reward,
        models.items,
        offer.reward_memory,
        pick(offer.item, candidate, -1),
        creative,
        pick(offer.is_ad, candidate, False),
    )


def pick(values: jax.Array, candidate: jax.Array, empty: chex.Numeric) -> jax.Array:
    """Values `[N]` of candidates of any shape, `empty` where there is none."""
    return jnp.where(candidate >= 0, values[candidate], empty)
