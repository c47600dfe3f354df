"""EGA's slates: token bids, beam search, choice by the reward model (sec. 4.3.1-2).

A bid enters in two places: in the weights of tokens (21), and in the value of the slates that the
search found (24). What it cannot change is the offer; see `auction.system`.

Written for one request; `vmap` it over a batch.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.settings import SearchSettings
from ega_jax.auction.system import (
    Allocation,
    Levers,
    Menu,
    Offer,
    SystemConfig,
    SystemModels,
    allocate,
    allocate_each,
    allocation_of,
    offer_of,
    pick,
    predict,
    seen_bids,
    slate_value,
)
from ega_jax.generation import generator
from ega_jax.generation.beam_search import Beams, beam_search
from ega_jax.generation.candidates import RequestCandidates, request_candidates
from ega_jax.generation.compaction import map_distinct
from ega_jax.generation.creatives import choose_creatives
from ega_jax.generation.generator import GeneratorConfig, Memory, codes_of
from ega_jax.generation.joint_search import joint_search
from ega_jax.reward import model as reward_model
from ega_jax.reward.model import Predictions
from ega_jax.types import IMPOSSIBLE, Params, Request

_WINNERS_AT_ONCE = 4  # Winning slates of variants are few: most variants share one.


@dataclasses.dataclass(frozen=True)
class AllocationConfig(SystemConfig):
    """What is compiled in; see `Levers` for what is not."""

    generator: GeneratorConfig
    num_beams: int = SearchSettings.num_beams  # S
    token_bid: str = SearchSettings.token_bid  # max or mean, see `request_candidates`.
    scope: str = SearchSettings.scope  # prefix or layer.


@struct.dataclass
class Models(SystemModels):
    """Parameters of generator and reward model, and what they know of the items."""

    generator: Params


@offer_of.register(Models)
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
            seen_bids(bid, levers),
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
        value=jnp.where(beams.where, value, IMPOSSIBLE),
        where=beams.where,
        log_z=beams.log_z.sum(-1),
        states=beams.states,
    )


@allocate.register(Models)
def _(
    models: Models, config: AllocationConfig, offer: Offer, bid: jax.Array, levers: Levers
) -> tuple[Allocation, Menu]:
    menu = find_menu(models, config, offer, bid, levers)
    best = jnp.argmax(menu.value)
    shown = _show(models, config, offer, levers, menu.candidate[best], menu.states[best])
    return allocation_of(offer, bid, menu, best, *shown), menu


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
