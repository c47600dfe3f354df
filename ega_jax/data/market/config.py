"""The config of a simulated ad market."""

import dataclasses

from ega_jax.errors import UserError
from ega_jax.setting import NOTHING, setting

WORLDS = ("synthetic", "yelp")
SIZE_NAMES = ("tiny", "small", "large")


@dataclasses.dataclass(frozen=True)
class MarketOrigin:
    """The world and seed of a market."""

    world: str = setting("synthetic", choices=WORLDS)  # yelp: real POIs and visits.
    seed: int = setting(0, at_least=0)  # Seeds all random draws.


@dataclasses.dataclass(frozen=True)
class MarketSettings(MarketOrigin):
    """The group `data.market`."""

    size: str = setting("tiny", choices=SIZE_NAMES)
    # World yelp: the folder of the public sequences; read only when the market is made.
    sequences: str = setting("", binds=NOTHING)
    num_slots: int = setting(0, at_least=0)  # K; 0: the size's default.

    @property
    def config(self) -> "MarketConfig":
        """The market's config.

        Raises:
          UserError: the market cannot fill its requests.
        """
        size = SIZES[self.size]
        num_slots = self.num_slots or size.num_slots
        return dataclasses.replace(size, world=self.world, seed=self.seed, num_slots=num_slots)


@dataclasses.dataclass(frozen=True)
class MarketConfig(MarketOrigin):
    """Sizes and seed of a market; the same config always gives the same log.

    The world `yelp` takes its POIs, categories, embeddings and visits from a folder of public
    sequences: the `num_pois` most visited POIs and at most `num_users` users. `num_categories` and
    `num_subcategories` apply to the synthetic world only.
    """

    num_pois: int = 600
    num_users: int = 2000
    num_sessions: int = 24_000
    num_slots: int = 5  # K, items shown per request.
    history_length: int = 16  # T, behaviours kept per user.
    num_ads: int = 16  # Ad candidates per request.
    num_organic: int = 16  # Organic candidates per request.
    num_categories: int = 6
    num_subcategories: int = 5  # Per category.
    latent_dim: int = 16
    style_dim: int = 8
    poi_embedding_dim: int = 64  # The world `yelp` keeps the width of its embeddings.
    creative_embedding_dim: int = 32
    advertiser_share: float = 0.5  # Share of POIs that buy ads.
    chunk_size: int = 4096  # Sessions simulated at once, each of a different user.

    def __post_init__(self):
        """Refuses a market that cannot fill its requests."""
        if self.world not in WORLDS:
            raise UserError(f"world {self.world!r} is unknown: choose one of {', '.join(WORLDS)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("world", "seed") and value <= 0:
                raise UserError(f"{field.name} must be positive, got {value}")
        if self.num_slots < 2:
            raise UserError(f"num_slots must be at least 2, got {self.num_slots}")
        if self.num_ads < self.num_slots or self.num_organic < self.num_slots:
            raise UserError(
                f"num_ads ({self.num_ads}) and num_organic ({self.num_organic}) must each be at "
                f"least num_slots ({self.num_slots})"
            )
        if self.num_advertisers < self.num_ads:
            raise UserError(
                f"num_ads ({self.num_ads}) exceeds the {self.num_advertisers} advertisers among "
                f"{self.num_pois} POIs"
            )
        if self.num_pois < self.num_ads + self.num_organic:
            raise UserError(
                f"num_pois ({self.num_pois}) is less than num_ads + num_organic "
                f"({self.num_ads + self.num_organic})"
            )

    @property
    def num_advertisers(self) -> int:
        """The number of POIs that buy ads."""
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
SIZES = dict(zip(SIZE_NAMES, (TINY, SMALL, LARGE), strict=True))
