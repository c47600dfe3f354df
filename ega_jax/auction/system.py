"""What an auction system is: a request is prepared, then slates are allocated under bids.

A system is a frozen struct with methods. EGA, GR and MCA are three of them; whatever has these
methods is priced, given a payment network, tabulated, explained, saved and judged by the same code.
Everything that bids cannot change is computed once per request (`prepare`), so that the many
re-allocations which regret asks for pay for the search alone.

Arguments stand in one order: the system, the request, bids, levers. All methods take one request;
`vmap` them over a batch.
"""

import abc
import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.auction.settings import LeverSettings
from ega_jax.errors import UserError
from ega_jax.reward import model as reward_model
from ega_jax.reward.model import Items, Predictions, RewardConfig
from ega_jax.types import LARGEST, Params, Request, is_amount, repeats_an_ad


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
    """Applies changes to levers and keeps their types, so that nothing recompiles.

    Raises:
      UserError: there is no such lever, or its value is out of range.
    """
    types = {name: jnp.asarray(value).dtype for name, value in vars(defaults).items()}
    for name, value in changes.items():
        if name not in types:
            raise UserError(f"no lever {name!r}; valid levers: {', '.join(types)}")
        if rule := _broken_rule(name, value, types[name]):
            raise UserError(f"lever {name} is {value}: it must be {rule}")
    values = vars(defaults) | dict(changes)
    return Levers(**{name: jnp.asarray(value, types[name]) for name, value in values.items()})


def _broken_rule(name: str, value: Any, dtype: jnp.dtype) -> str:
    """The rule that a lever's value breaks, "" if none."""
    if not _is_number(value):
        return "one number"
    if jnp.issubdtype(dtype, jnp.bool_) and value not in (False, True):
        return "False or True"
    is_whole = float(value).is_integer() and 0 <= value < 2**31
    if jnp.issubdtype(dtype, jnp.integer) and not is_whole:
        return "a whole number, at least 0"
    if not is_amount(value) or (name == "alpha" and value == 0):
        least = "above 0" if name == "alpha" else "at least 0"
        return f"{least} and at most {LARGEST:g}"
    return ""


def _is_number(value: Any) -> bool:
    kinds = numbers.Real | np.number | np.bool_ | np.ndarray | jax.Array
    return isinstance(value, kinds) and getattr(value, "shape", ()) == ()


@struct.dataclass
class PreparedRequest:
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


@struct.dataclass
class Tokens:
    """What the codes of a slate's items had to do with it; `C = 0` in a system without codes."""

    codes: jax.Array  # [K, C] int32 codes of the item.
    logit: jax.Array  # [K, C] float32 the generator's logit of each code.
    token_bid: jax.Array  # [K, C] float32 currency per click that each code carries.
    weight: jax.Array  # [K, C] float32 the code's weight (21).


@struct.dataclass
class Funnel:
    """What the stages of a cascade let through to the last one."""

    recalled: jax.Array  # [N] bool, ads that recall keeps.
    listed: jax.Array  # [L] int32 ads that the auction lists, best first, -1 where empty.


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """What is compiled into any system: sizes of the reward model that judges its slates."""

    reward: RewardConfig


Config = TypeVar("Config", bound=SystemConfig)


@struct.dataclass
class System(abc.ABC, Generic[Config]):
    """A trained allocation: parameters and items are leaves, sizes are static.

    A new system implements `encode`, `allocate` and `allocate_each`.
    """

    reward: Params  # Of the reward model that judges any system's slates.
    items: Items  # What is known of the items.
    config: Config = struct.field(pytree_node=False)

    weighs_tokens: ClassVar[bool] = False  # Token bids (21) steer its search: alpha, beta, beams.
    judged_truthful: ClassVar[bool] = False  # Judges also score its exactly truthful mode.

    @abc.abstractmethod
    def encode(self, request: Request) -> PreparedRequest:
        """What `prepare` returns for a request whose organic candidates are none of its ads."""

    @abc.abstractmethod
    def allocate(
        self, prepared: PreparedRequest, bid: jax.Array, levers: Levers
    ) -> tuple[Allocation, Menu]:
        """Chooses the slate shown for one request.

        Args:
          prepared: the request, from `prepare`.
          bid: `[N]` float32 currency per click, at least 0, 0 for organic items.
          levers: run-time settings.

        Returns:
          The slate with its creatives, and the menu it was chosen from. If the menu was searched
          without bids, creatives stay those of the menu: bids then decide the choice alone.
        """

    @abc.abstractmethod
    def allocate_each(
        self,
        prepared: PreparedRequest,
        bid: jax.Array,
        levers: Levers,
        banned: jax.Array | None = None,
    ) -> tuple[Allocation, Menu]:
        """Chooses a slate for each of `R` bid vectors of one request, sharing common work.

        Args:
          prepared: the request, from `prepare`.
          bid: `[R, N]` float32 currency per click, 0 for organic items.
          levers: run-time settings.
          banned: `[R]` int32 a candidate that may not be shown, -1 for none; none by default.

        Returns:
          The allocations and menus; every field has a leading axis `R`.
        """

    def prepare(self, request: Request) -> PreparedRequest:
        """Computes what bids cannot change: encoded histories, and each candidate on its own.

        Args:
          request: one request, without a batch axis; its bids are not read. An organic candidate
            whose POI is among the ads is left out.
        """
        repeated = repeats_an_ad(request.item, request.is_ad)
        return self.encode(dataclasses.replace(request, item=jnp.where(repeated, -1, request.item)))

    def encode_for_reward(self, request: Request) -> reward_model.Memory:
        """What the reward model reads of one request."""
        history = request.history_poi, request.history_creative
        return reward_model.encode(
            self.reward, self.config.reward, self.items, *history, request.item
        )

    def predict(
        self, prepared: PreparedRequest, candidate: jax.Array, creative: jax.Array
    ) -> Predictions:
        """The reward model's view of slates of candidates `[..., K]` with creatives `[..., K]`."""
        return reward_model.predict(
            self.reward,
            self.config.reward,
            self.items,
            prepared.reward_memory,
            pick(prepared.item, candidate, -1),
            creative,
            pick(prepared.is_ad, candidate, False),
        )

    def contributions(
        self, prepared: PreparedRequest, bid: jax.Array, levers: Levers, candidate: jax.Array
    ) -> jax.Array:
        """What each item adds to the slate shown (31): its value less that of the best without.

        Args:
          prepared: the request.
          bid: `[N]` float32 currency per click.
          levers: run-time settings.
          candidate: `[K]` int32 of the slate shown, -1 where a slot is empty.

        Returns:
          `[K]` float32 currency, 0 where a slot is empty.
        """
        slots = candidate.shape[0]
        bids = jnp.broadcast_to(bid, (1 + slots, bid.size))
        banned = jnp.concatenate([jnp.full(1, -1), candidate])
        _, menus = self.allocate_each(prepared, bids, levers, banned)
        best = menus.value.max(-1)
        return jnp.where(candidate >= 0, best[0] - best[1:], 0.0)

    def funnel(self, prepared: PreparedRequest, bid: jax.Array, levers: Levers) -> Funnel | None:
        """What the stages of a cascade let through; `None` in a system without stages."""
        return None

    def tokens(
        self, prepared: PreparedRequest, bid: jax.Array, levers: Levers, candidate: jax.Array
    ) -> Tokens:
        """What the codes of the slate shown had to do with it; nothing in a system without codes.

        Arguments as `contributions`.
        """
        none = jnp.zeros((candidate.shape[0], 0))
        return Tokens(codes=none.astype(jnp.int32), logit=none, token_bid=none, weight=none)


def visible_bids(bid: jax.Array, levers: Levers) -> jax.Array:
    """Bids of any shape as a search sees them: 0 where it is to ignore them."""
    return jnp.where(levers.bid_free, 0.0, bid)


def slate_value(bid: jax.Array, pctr: jax.Array, kappa: chex.Numeric) -> jax.Array:
    """What slates are worth in currency: `sum b * pctr + kappa * sum pctr` over the last axis."""
    return jnp.sum((bid + kappa) * pctr, axis=-1)


def allocation_of(
    prepared: PreparedRequest,
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
        item=pick(prepared.item, candidate, -1),
        creative=creative,
        is_ad=pick(prepared.is_ad, candidate, False),
        bid=pick(bid, candidate, 0.0),
        log_z=menu.log_z[best],
        prediction=prediction,
    )


def pick(values: jax.Array, candidate: jax.Array, empty: chex.Numeric) -> jax.Array:
    """Values `[N]` of candidates of any shape, `empty` where there is none."""
    return jnp.where(candidate >= 0, values[candidate], empty)


def pick_each(values: jax.Array, candidate: jax.Array, empty: chex.Numeric) -> jax.Array:
    """Values `[B, N]` of candidates `[B, ...]`, request by request; see `pick`."""
    return jax.vmap(lambda values, candidate: pick(values, candidate, empty))(values, candidate)
