"""The shape of an ad market: everything that decides what a log contains."""

import dataclasses
from collections.abc import Mapping
from typing import Any

WORLDS = ("synthetic", "yelp")


@dataclasses.dataclass(frozen=True)
class MarketConfig:
    """Sizes and seed of a market; the same config always gives the same log.

    `num_categories` and `num_subcategories` shape the synthetic taxonomy only: the world `yelp`
    takes its POIs, categories, embeddings and visits from a folder of public sequences, at most
    `num_pois` POIs (the most visited) and `num_users` users of them.
    """

    world: str = "synthetic"
    num_pois: int = 600
    num_users: int = 2000
    num_sessions: int = 24_000
    num_slots: int = 5  # K, items shown per request.
    history_length: int = 16  # T, behaviours remembered per user.
    num_ads: int = 16  # Ad candidates of a request.
    num_organic: int = 16  # Organic candidates of a request.
    num_categories: int = 6
    num_subcategories: int = 5  # Per category.
    latent_dim: int = 16
    style_dim: int = 8
    poi_embedding_dim: int = 64  # The world `yelp` keeps the width it is given.
    creative_embedding_dim: int = 32
    advertiser_share: float = 0.5  # Share of POIs that buy ads.
    chunk_size: int = 4096  # Sessions simulated at once, each of another user.
    seed: int = 0

    def __post_init__(self):
        """Refuses a market that could not fill its requests."""
        if self.world not in WORLDS:
            raise ValueError(f"world {self.world!r} is unknown: choose one of {', '.join(WORLDS)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("world", "seed") and value <= 0:
                raise ValueError(f"{field.name} must be positive, got {value}")
        if self.num_slots < 2:
            raise ValueError(f"num_slots must be at least 2, got {self.num_slots}")
        if self.num_ads < self.num_slots or self.num_organic < self.num_slots:
            raise ValueError(
                f"num_ads ({self.num_ads}) and num_organic ({self.num_organic}) must each be at "
                f"least num_slots ({self.num_slots})"
            )
        if self.num_advertisers < self.num_ads:
            raise ValueError(
                f"num_ads ({self.num_ads}) exceeds the {self.num_advertisers} advertisers among "
                f"{self.num_pois} POIs"
            )
        if self.num_pois < self.num_ads + self.num_organic:
            raise ValueError(
                f"num_pois ({self.num_pois}) is less than num_ads + num_organic "
                f"({self.num_ads + self.num_organic})"
            )

    @property
    def num_advertisers(self) -> int:
        """POIs that buy ads."""
        return int(self.num_pois * self.advertiser_share)


TINY = MarketConfig()
SMALL = MarketConfig(
    num_pois=5000,
    num_users=20_000,
    num_sessions=200_000,
    num_slots=6,
    history_length=32,
    num_ads=40,
    num_organic=40,
    num_categories=12,
    num_subcategories=8,
)
LARGE = MarketConfig(
    num_pois=100_000,
    num_users=200_000,
    num_sessions=1_000_000,
    num_slots=10,
    history_length=128,
    num_ads=200,
    num_organic=200,
    num_categories=20,
    num_subcategories=20,
)
SIZES = {"tiny": TINY, "small": SMALL, "large": LARGE}


def market_config(settings: Mapping[str, Any]) -> MarketConfig:
    """The market that the group `data.market` of a config asks for.

    Args:
      settings: `size`, `world`, `seed` and `num_slots`; 0 slots: as the size says.

    Raises:
      ValueError: it could not fill its requests.
    """
    size = SIZES[settings["size"]]
    return dataclasses.replace(
        size,
        world=settings["world"],
        seed=settings["seed"],
        num_slots=settings["num_slots"] or size.num_slots,
    )
