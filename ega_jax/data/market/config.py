"""The config of a simulated ad market."""

import dataclasses

from ega_jax.errors import UserError
from ega_jax.setting import NOTHING, setting

WORLDS = ("synthetic", "yelp")
SIZE_NAMES = ("tiny", "small", "large")
DAYS = 28  # Days that a log of any number of sessions covers.
ADVERTISER_SHARE = 0.5  # Share of POIs that buy ads.
NEW_SHARE = 0.1  # Share of POIs that open late.
FIRST_NEW_DAY = 23  # Late POIs open from this day to the last, in the last fifth of the log.


def num_advertisers(num_pois: int) -> int:
    """How many of a region's POIs buy ads."""
    return int(num_pois * ADVERTISER_SHARE)


def num_opened(num_pois: int) -> int:
    """How many of a region's POIs buy no ads and open on the first day."""
    others = num_pois - num_advertisers(num_pois)
    return others - int(others * NEW_SHARE)


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
    book: int = setting(0, at_least=0)  # Advertisers of a region; scales the POIs. 0: the size's.

    @property
    def config(self) -> "MarketConfig":
        """The market's config; two thirds of the slots may show ads.

        With a small book, requests have as many organic items as open on the first day, at most.

        Raises:
          UserError: the market cannot fill its requests.
        """
        size = SIZES[self.size]
        num_slots = self.num_slots or size.num_slots
        pois_of_book = round(self.book * size.num_regions / ADVERTISER_SHARE)
        num_pois = pois_of_book or size.num_pois
        return dataclasses.replace(
            size,
            world=self.world,
            seed=self.seed,
            num_pois=num_pois,
            num_slots=num_slots,
            max_ads=round(num_slots * 2 / 3),
            num_organic=min(size.num_organic, num_opened(num_pois // size.num_regions)),
        )


@dataclasses.dataclass(frozen=True)
class MarketConfig(MarketOrigin):
    """Sizes and seed of a market; the same config always gives the same log.

    The world `yelp` takes its POIs, categories, embeddings and visits from a folder of public
    sequences: the `num_pois` most visited POIs and at most `num_users` users. `num_categories` and
    `num_subcategories` apply to the synthetic world only.
    """

    num_pois: int = 600
    num_regions: int = 3
    num_users: int = 2000
    num_sessions: int = 24_000
    num_slots: int = 5  # K, the most items shown per request.
    max_ads: int = 3  # The most ads in a slate.
    history_length: int = 16  # T, behaviours kept per user.
    num_organic: int = 16  # Organic candidates per request.
    num_categories: int = 6
    num_subcategories: int = 5  # Per category.
    latent_dim: int = 16
    style_dim: int = 8
    poi_embedding_dim: int = 64  # The world `yelp` keeps the width of its embeddings.
    creative_embedding_dim: int = 32
    explore: float = 0.05  # Share of slates that are drawn uniformly.
    chunk_size: int = 4096  # The most sessions simulated at once, each of a different user.

    def __post_init__(self):
        """Refuses a market that cannot fill its requests."""
        if self.world not in WORLDS:
            raise UserError(f"world {self.world!r} is unknown: choose one of {', '.join(WORLDS)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("world", "seed") and value <= 0:
                raise UserError(f"{field.name} must be positive, got {value}")
        if self.explore > 1:
            raise UserError(f"explore is {self.explore}: it must be a share above 0")
        if self.num_slots < 2:
            raise UserError(f"num_slots must be at least 2, got {self.num_slots}")
        if self.max_ads >= self.num_slots:
            raise UserError(
                f"max_ads ({self.max_ads}) must be below num_slots ({self.num_slots}): a slate "
                "has an organic item"
            )
        self._check_candidates()

    @property
    def num_advertisers(self) -> int:
        """The number of POIs of a region that buy ads: the most ads in a book."""
        return num_advertisers(self.num_pois // self.num_regions)

    def _check_candidates(self):
        opened = num_opened(self.num_pois // self.num_regions)
        if min(self.num_advertisers, self.num_organic) < self.num_slots:
            raise UserError(
                f"the {self.num_advertisers} advertisers of a region (num_pois / num_regions / 2) "
                f"and num_organic ({self.num_organic}) must each be at least num_slots "
                f"({self.num_slots})"
            )
        if opened < self.num_organic:
            raise UserError(
                f"num_organic ({self.num_organic}) exceeds the {opened} POIs of a region that buy "
                f"no ads and open on the first day: raise num_pois ({self.num_pois})"
            )


TINY = MarketConfig()
SMALL = MarketConfig(
    num_pois=20_000,
    num_regions=10,
    num_users=20_000,
    num_sessions=200_000,
    num_slots=6,
    max_ads=4,
    history_length=32,
    num_organic=40,
    num_categories=12,
    num_subcategories=8,
)
LARGE = MarketConfig(
    num_pois=200_000,
    num_regions=10,
    num_users=200_000,
    num_sessions=1_000_000,
    num_slots=10,
    max_ads=7,
    history_length=128,
    num_organic=200,
    num_categories=20,
    num_subcategories=20,
)
SIZES = dict(zip(SIZE_NAMES, (TINY, SMALL, LARGE), strict=True))
