"""The interface of an auction system: prepare a request, then allocate slates under given bids.

A system is a frozen struct with methods; EGA, GR and MCA are systems. The same code prices, saves,
explains and evaluates every system and trains its payment networks. `prepare` computes everything
that all allocations of a request share. The many re-allocations for regret then only repeat the
search, each under a `Report`: one ad bids another amount, or is absent.

All methods take one request; `vmap` them over a batch. The book of ads belongs to the system, so a
batch of requests shares it.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.settings import LeverSettings
from ega_jax.generation.ad_book import AdBook
from ega_jax.generation.compaction import first_equal
from ega_jax.generation.reports import Report, absent
from ega_jax.lever_rules import checked_levers
from ega_jax.reward import model as reward_model
from ega_jax.reward.model import Items, Predictions, RewardConfig
from ega_jax.types import AnyRequest, Params, organic_pois


@struct.dataclass
class Levers:
    """Run-time settings, which may change per request without recompiling; all are scalars."""

    alpha: chex.Numeric = LeverSettings.alpha  # Exponent of token bids (21).
    beta: chex.Numeric = LeverSettings.beta  # Floor of token weights (21); favours organic content.
    # Value of a click beside its bid, in currency.
    kappa: chex.Numeric = LeverSettings.kappa
    reserve: chex.Numeric = LeverSettings.reserve  # Minimum bid and price per click, in currency.
    max_ads: chex.Numeric = 2**30  # Maximum ads in a slate; 0: none (in a config: the log's limit).
    min_gap: chex.Numeric = LeverSettings.min_gap  # Minimum organic items between two ads.
    # The search ignores bids, so no advertiser can influence the menu.
    bid_free: chex.Numeric = LeverSettings.bid_free


def check_levers(defaults: Levers, changes: Mapping[str, Any]) -> Levers:
    """Applies changes to levers; see `checked_levers`."""
    return Levers(**checked_levers(vars(defaults), changes))


@struct.dataclass
class PreparedRequest:
    """A request as one system reads it under given levers; no field depends on a `Report`."""

    memory: Any  # The request encoded for the system's search.
    reward_memory: reward_model.Memory
    levers: Levers


@struct.dataclass
class Bidders:
    """Ads that take part in an auction."""

    ad: jax.Array  # [...] int32 candidates, -1 for none; in a menu an ad may occur several times.
    bid: jax.Array  # [...] float32 currency per click.
    quality: jax.Array  # [...] float32 click probability of the ad alone in the first slot.
    item: jax.Array  # [...] int32 POIs of the ads.

    @property
    def score(self) -> jax.Array:
        """Bid times quality, `[...]`; 0 for none."""
        return jnp.where(self.ad >= 0, self.bid * self.quality, 0.0)

    @property
    def is_first(self) -> jax.Array:
        """Whether an entry is the first one of its ad, `[V]` bool."""
        first = first_equal(self.ad[:, None]) == jnp.arange(self.ad.size)
        return first & (self.ad >= 0)

    def loses(self, shown: jax.Array) -> jax.Array:
        """Whether an entry `[V]` is an ad that is not among the candidates shown `[K]`, bool."""
        return (self.ad >= 0) & ~jnp.any(self.ad[:, None] == shown[None], axis=1)


@struct.dataclass
class Menu:
    """The slates found by the search, with their values; the best slate is shown."""

    candidate: jax.Array  # [S, K] int32 candidates, -1 in empty slots.
    item: jax.Array  # [S, K] int32 POI ids, -1 in empty slots.
    creative: jax.Array  # [S, K] int32 creatives with which the slates are valued.
    is_ad: jax.Array  # [S, K] bool.
    bid: jax.Array  # [S, K] float32 currency per click, 0 for organic items.
    reserve: jax.Array  # [S, K] float32 least bid and price of the ad, 0 for organic items.
    quality: jax.Array  # [S, K] float32 click probability of the item alone in the first slot.
    pctr: jax.Array  # [S, K] float32 click probabilities, 0 in empty slots.
    value: jax.Array  # [S] float32 expected value in currency, -1e30 if there is no slate.
    where: jax.Array  # [S] bool, whether there is a slate.
    log_z: jax.Array  # [S, K] float32 log allocation probability of an item, summed over its codes.
    states: jax.Array  # [S, K, D] decoder states, from which the winner's creatives are chosen.
    rivals: Bidders  # [V] the ads that compete for the slate, shown or not; none bids too little.


@struct.dataclass
class Allocation:
    """The slate shown for one request."""

    candidate: jax.Array  # [K] int32 candidates, -1 in empty slots.
    item: jax.Array  # [K] int32 POI ids, -1 in empty slots.
    creative: jax.Array  # [K] int32, -1 without creative.
    is_ad: jax.Array  # [K] bool.
    bid: jax.Array  # [K] float32 currency per click, 0 for organic items.
    reserve: jax.Array  # [K] float32, as in the menu.
    quality: jax.Array  # [K] float32, as in the menu.
    log_z: jax.Array  # [K] float32, as in the menu.
    prediction: Predictions  # Predicted responses to the slate with these creatives, [K].

    @property
    def ads(self) -> Bidders:
        """The slots' ads `[K]`, -1 in slots without ad."""
        ad = jnp.where(self.is_ad, self.candidate, -1)
        return Bidders(ad, self.bid, self.quality, self.item)


@struct.dataclass
class Tokens:
    """Codes of a slate's items with logits, bids and weights; `C = 0` in a system without codes."""

    codes: jax.Array  # [K, C] int32 codes of the item.
    logit: jax.Array  # [K, C] float32 the generator's logit of each code.
    token_bid: jax.Array  # [K, C] float32 token bid of each code, currency per click.
    weight: jax.Array  # [K, C] float32 token weight of each code (21).


@struct.dataclass
class Funnel:
    """The ads that pass the stages of a cascade."""

    recalled: jax.Array  # [R] int32 ads that recall keeps, -1 padding.
    ranked: jax.Array  # [X] int32 ads that ranking keeps, -1 elsewhere.
    listed: jax.Array  # [L] int32 candidates that the auction lists, best first, -1 padding.


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """Static configuration of any system: sizes of the reward model that scores its slates."""

    reward: RewardConfig


Config = TypeVar("Config", bound=SystemConfig)


@struct.dataclass
class System(abc.ABC, Generic[Config]):
    """A trained allocation: parameters and items are leaves, sizes are static.

    A new system implements `prepare`, `allocate` and `allocate_each`.
    """

    reward: Params  # Parameters of the reward model that scores slates.
    items: Items  # Codes and embeddings of the items.
    config: Config = struct.field(pytree_node=False)
    # The ads for sale, for requests to a book; requests with a list of their own do not read it.
    book: AdBook | None = struct.field(default=None, kw_only=True)

    weighs_tokens: ClassVar[bool] = False  # The search uses token bids (21): alpha, beta, beams.
    weighs_clicks: ClassVar[bool] = True  # Slates follow kappa when they are served.
    judged_truthful: ClassVar[bool] = False  # Evaluation also covers the exactly truthful mode.
    reads_search_bids: ClassVar[bool] = True  # The slates of a book depend on its search bids.

    @abc.abstractmethod
    def prepare(self, request: AnyRequest, levers: Levers) -> PreparedRequest:
        """Computes what all allocations of one request share: encoded history, indexed ads.

        Args:
          request: one request, without a batch axis.
          levers: run-time settings of the allocations.
        """

    @abc.abstractmethod
    def allocate(self, prepared: PreparedRequest) -> tuple[Allocation, Menu]:
        """Chooses the slate shown for one request, from `prepare`.

        Returns:
          The slate with its creatives, and the menu from which it was chosen. With `bid_free`, the
          creatives are those with which the menu was scored; bids then affect only the choice
          among the menu's slates.
        """

    @abc.abstractmethod
    def allocate_each(self, prepared: PreparedRequest, reports: Report) -> tuple[Allocation, Menu]:
        """Chooses a slate for each of `R` reports of single ads, sharing common work.

        Args:
          prepared: the request, from `prepare`.
          reports: `[R]` one ad's bid, or its absence, in each variant of the request.

        Returns:
          The allocations and menus; all fields have a leading axis `R`.
        """

    def menus(self, prepared: PreparedRequest, reports: Report) -> Menu:
        """The menus of `allocate_each` alone."""
        return self.allocate_each(prepared, reports)[1]

    def encode_for_reward(self, request: AnyRequest) -> reward_model.Memory:
        """Encodes one request for the reward model."""
        history = request.history_poi, request.history_creative
        return reward_model.encode(
            self.reward,
            self.config.reward,
            self.items,
            *history,
            organic_pois(vars(request)),
            request.context,
        )

    def predict(
        self, prepared: PreparedRequest, item: jax.Array, creative: jax.Array, is_ad: jax.Array
    ) -> Predictions:
        """The reward model's predictions for slates of POIs, all `[..., K]`."""
        memory = prepared.reward_memory
        return reward_model.predict(
            self.reward, self.config.reward, self.items, memory, item, creative, is_ad
        )

    def contributions(self, prepared: PreparedRequest, shown: Allocation) -> jax.Array:
        """Marginal contributions (31) of the items of the slate shown.

        An item's contribution is the slate's value minus the value of the best slate without it.

        Args:
          prepared: the request.
          shown: its slate.

        Returns:
          `[K]` float32 currency, 0 in empty slots.
        """
        nothing = jnp.full(1, -1, jnp.int32)
        menus = self.menus(prepared, absent(jnp.concatenate([nothing, shown.candidate])))
        best = menus.value.max(-1)
        return jnp.where(shown.candidate >= 0, best[0] - best[1:], 0.0)

    def funnel(self, prepared: PreparedRequest) -> Funnel | None:
        """The ads that pass the stages of a cascade; None for a system without stages."""
        return None

    def tokens(self, prepared: PreparedRequest, shown: Allocation) -> Tokens:
        """Codes of the slate shown, with logits, bids and weights; empty in a system without codes.

        Arguments as in `contributions`.
        """
        none = jnp.zeros((shown.candidate.shape[0], 0))
        return Tokens(codes=none.astype(jnp.int32), logit=none, token_bid=none, weight=none)


def visible_bids(bid: jax.Array, levers: Levers) -> jax.Array:
    """Bids that the search uses, of any shape: 0 if `bid_free`."""
    return jnp.where(levers.bid_free, 0.0, bid)


def slate_value(bid: jax.Array, pctr: jax.Array, kappa: chex.Numeric) -> jax.Array:
    """Value of slates in currency: `sum b * pctr + kappa * sum pctr` over the last axis."""
    return jnp.sum((bid + kappa) * pctr, axis=-1)


def allocation_of(
    menu: Menu, best: chex.Numeric, creative: jax.Array, prediction: Predictions
) -> Allocation:
    """The allocation of slate `best []` of a menu, with given creatives and predictions."""
    return Allocation(
        candidate=menu.candidate[best],
        item=menu.item[best],
        creative=creative,
        is_ad=menu.is_ad[best],
        bid=menu.bid[best],
        reserve=menu.reserve[best],
        quality=menu.quality[best],
        log_z=menu.log_z[best],
        prediction=prediction,
    )


def pick(values: jax.Array, candidate: jax.Array, empty: chex.Numeric) -> jax.Array:
    """Gathers `values [N]` at candidates of any shape; `empty` at -1."""
    return jnp.where(candidate >= 0, values[candidate], empty)


def pick_each(values: jax.Array, candidate: jax.Array, empty: chex.Numeric) -> jax.Array:
    """Gathers `values [B, N]` at candidates `[B, ...]`, request by request; see `pick`."""
    return jax.vmap(lambda values, candidate: pick(values, candidate, empty))(values, candidate)
