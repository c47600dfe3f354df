"""Settings of the allocation: the group `allocation`."""

import dataclasses

from ega_jax.generation.bidding import SCOPES, TOKEN_BIDS
from ega_jax.setting import setting


@dataclasses.dataclass(frozen=True)
class TokenWeights:
    """How bids weigh tokens (21)."""

    alpha: float = setting(1.2, above=0)  # Exponent of token bids: how much bids matter.
    beta: float = setting(2.0, at_least=0)  # Floor of token weights; lifts organic content.


@dataclasses.dataclass(frozen=True)
class LeverSettings(TokenWeights):
    """The start values of the levers; see `ega_jax.auction.system.Levers`."""

    kappa: float = setting(0.0, at_least=0)  # Currency that an expected click is worth in itself.
    reserve: float = setting(0.0, at_least=0)  # Least bid and least price per click, in currency.
    max_ads: int = setting(0, at_least=0)  # Most ads in a slate; 0: no limit.
    min_gap: int = setting(0, at_least=0)  # Fewest organic items between two ads.
    bid_free: bool = setting(False)  # The search ignores bids; exact truth with Clarke's prices.


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """What is compiled into the search for slates."""

    num_beams: int = setting(32, at_least=1)  # S
    token_bid: str = setting("max", choices=TOKEN_BIDS)  # mean: the ablation EGA-bid.
    scope: str = setting("prefix", choices=SCOPES)  # Which items carry a token.


@dataclasses.dataclass(frozen=True)
class AllocationSettings(LeverSettings, SearchSettings):
    """The group `allocation`."""
