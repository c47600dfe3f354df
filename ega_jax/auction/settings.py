"""Settings of the allocation: the group `allocation`."""

import dataclasses

from ega_jax.generation.bidding import SCOPES, TOKEN_BIDS, TOKEN_VALUES
from ega_jax.setting import setting

CREATIVES = ("likelihood", "clicks")


@dataclasses.dataclass(frozen=True)
class TokenWeights:
    """Parameters of the token weights (21)."""

    alpha: float = setting(1.2, above=0)  # Exponent of token bids; larger: bids matter more.
    beta: float = setting(2.0, at_least=0)  # Floor of token weights; larger: more organic content.


@dataclasses.dataclass(frozen=True)
class LeverSettings(TokenWeights):
    """Default values of the levers; see `ega_jax.auction.system.Levers`."""

    kappa: float = setting(0.0, at_least=0)  # Value of a click beside its bid, in currency.
    reserve: float = setting(0.0, at_least=0)  # Minimum bid and price per click, in currency.
    max_ads: int = setting(0, at_least=0)  # Maximum number of ads in a slate; 0: the log's limit.
    min_gap: int = setting(0, at_least=0)  # Minimum number of organic items between two ads.
    bid_free: bool = setting(False)  # The search ignores bids; truthful with Clarke prices.


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Static settings of the search for slates; changing them recompiles."""

    num_beams: int = setting(32, at_least=1)  # S
    token_bid: str = setting("max", choices=TOKEN_BIDS)  # mean: the ablation EGA-bid.
    # An ad's value in a token's bid. bid: its bid. ecpm: (bid + kappa) times its relative click
    # rate, for which a request reads every ad of its book.
    token_value: str = setting("bid", choices=TOKEN_VALUES)
    # The creative of an item: the generator's likeliest, or the most clicked by the reward model.
    creatives_by: str = setting("likelihood", choices=CREATIVES)
    scope: str = setting("prefix", choices=SCOPES)  # Items that count for a token's bid.
    # An ad's reserve in a book of past bids: the bid at which it matches the other ad of this rank
    # by past bids. 0: no such reserve.
    reserve_rank: int = setting(8, at_least=0)


@dataclasses.dataclass(frozen=True)
class AllocationSettings(LeverSettings, SearchSettings):
    """The group `allocation`."""

    # Weight of an ad's past bids in what the search sees of its bid, in a log with books. Above 0,
    # prices are more truthful and slates are worth less.
    bid_smoothing: float = setting(0.0, at_least=0, below=1)
