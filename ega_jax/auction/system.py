"""What every auction system gives, and how it is asked: an offer, a menu, an allocation.

A system registers `offer_of`, `allocate` and `allocate_each` for the type of its parameters, and is
then priced, tabulated, given a payment network and judged by the same code as any other. Everything
that bids cannot change is computed once per request (`prepare`), so that the many re-allocations
which regret asks for pay for the search alone.

Written for one request; `vmap` it over a batch.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.settings import LeverSettings
from ega_jax.reward import model as reward_model
from ega_jax.reward.model import Items, Predictions, RewardConfig
from ega_jax.types import LARGEST, Params, Request, is_amount, repeats_an_ad


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """What is compiled into any system: sizes of the reward model that judges its slates."""

    reward: RewardConfig


@struct.dataclass
class Levers:
    """What an operator may change from request to request without recompiling; all scalars."""

    alpha: chex.Numeric = LeverSettings.alpha  # How much bids matter (21).
    beta: chex.Numeric = LeverSettings.beta  # Floor of token weights (21); lifts organic content.
    # Currency that one expected click is worth beside its price.
    kappa: chex.Numeric = LeverSettings.kappa
    reserve: chex.Numeric = LeverSettings.reserve  # Least bid and price per click, in currency.
    max_ads: chex.Numeric = 2**30  # Most ads in a slate; 0: none (in a config: no limit).
    min_gap: chex.Numeric = LeverSettings.min_gap  # Fewest organic items between two ads.
    # The search ignores bids: a menu that nobody can influence.
    bid_free: chex.Numeric = LeverSettings.bid_free


def check_levers(defaults: Levers, changes: Mapping[str, Any]) -> Levers:
    """Applies changes to levers, keeping their types so that nothing recompiles.

    Raises:
      ValueError: there is no such lever, or its value is out of range.
    """
    types = {name: jnp.asarray(value).dtype for name, value in vars(defaults).items()}
    for name, value in changes.items():
        if name not in types:
            raise ValueError(f"no lever {name!r}; valid levers: {', '.join(types)}")
        whole = jnp.issubdtype(types[name], jnp.integer)
        if jnp.issubdtype(types[name], jnp.bool_) and value not in (False, True):
            raise ValueError(f"lever {name} is {value}: it must be False or True")
        if whole and not (float(value).is_integer() and 0 <= value < 2**31):
            raise ValueError(f"lever {name} is {value}: it must be a whole number, at least 0")
        if not is_amount(value) or (name == "alpha" and value == 0):
            least = "above 0" if name == "alpha" else "at least 0"
            raise ValueError(f"lever {name} is {value}: it must be {least} and at most {LARGEST:g}")
    values = vars(defaults) | dict(changes)
    return Levers(**{name: jnp.asarray(value, types[name]) for name, value in values.items()})


@struct.dataclass
class SystemModels:
    """The reward model that judges any system's slates, and what is known of the items."""

    reward: Params
    items: Items


@struct.dataclass
class Offer:
    """One request, as far as bids cannot change it."""

    memory: Any  # What the system's own search reads of the request; EGA's: encoded history.
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


def prepare(models: SystemModels, config: SystemConfig, request: Request) -> Offer:
    """Computes what bids cannot change: encoded histories, and each candidate on its own.

    Args:
      models: of a system; for EGA generator, reward model, items.
      config: its sizes.
      request: one request, without a batch axis; its bids are not read. An organic candidate
        whose POI is among the ads is left out.

    Returns:
      The offer.
    """
    repeated = repeats_an_ad(request.item, request.is_ad)
    request = dataclasses.replace(request, item=jnp.where(repeated, -1, request.item))
    return offer_of(models, config, request)


@functools.singledispatch
def offer_of(models: SystemModels, config: SystemConfig, request: Request) -> Offer:
    """What `prepare` returns for a request whose organic candidates are none of its ads.

    Like `allocate` and `allocate_each` it goes by the type of `models`: a system that allocates in
    its own way registers these three, and is priced, trained and judged by the same code.
    """
    raise NotImplementedError(type(models))


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


def seen_bids(bid: jax.Array, levers: Levers) -> jax.Array:
    """Bids of any shape as a search sees them: none where it is to ignore them."""
    return jnp.where(levers.bid_free, 0.0, bid)


def slate_value(bid: jax.Array, pctr: jax.Array, kappa: chex.Numeric) -> jax.Array:
    """What slates are worth in currency: `sum b * pctr + kappa * sum pctr` over the last axis."""
    return jnp.sum((bid + kappa) * pctr, axis=-1)


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


def pick_each(values: jax.Array, candidate: jax.Array, empty: chex.Numeric) -> jax.Array:
    """Values `[B, N]` of candidates `[B, ...]`, request by request; see `pick`."""
    return jax.vmap(lambda values, candidate: pick(values, candidate, empty))(values, candidate)
