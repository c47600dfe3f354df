"""The cascade's stages that are trained on logs, once per workdir for all systems."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax

from ega_jax.auction.system import pick
from ega_jax.baselines.cascade.hstu import HSTUConfig, HSTUSettings, hstu_phase
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig, PeriCRSettings, peri_cr_phase
from ega_jax.baselines.cascade.recall import likeliest_ads
from ega_jax.baselines.cascade.tiger import Ranked, tiger_config, tiger_phase
from ega_jax.baselines.cascade.two_tower import (
    TwoTowerConfig,
    TwoTowerSettings,
    two_tower_phase,
)
from ega_jax.baselines.settings import CascadeSettings, whole
from ega_jax.generation.ad_book import AdBook
from ega_jax.generation.generator import GeneratorConfig, GeneratorDecoder
from ega_jax.phases.auction import AuctionTraining
from ega_jax.setting import part_of
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.types import Params

_SEARCHED_AT_ONCE = 16  # Requests; each holds scores of all codes for each beam.


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages that are trained on logged feedback only, bound to a workdir.

    Attributes:
      run: the training of a system; it provides data, items and settings.
    """

    run: AuctionTraining

    @property
    def tiger_config(self) -> GeneratorConfig:
        """TIGER's config, with the generator's sizes."""
        return tiger_config(self.run.pretraining.generator_config)

    @property
    def two_tower_config(self) -> TwoTowerConfig:
        """The pre-ranker's config."""
        return TwoTowerConfig(**self._shared, **part_of(self.settings.two_tower, TwoTowerSettings))

    @property
    def hstu_config(self) -> HSTUConfig:
        """HSTU's config."""
        return HSTUConfig(**self._shared, **part_of(self.settings.hstu, HSTUSettings))

    @property
    def peri_cr_config(self) -> PeriCRConfig:
        """Peri-CR's config."""
        return PeriCRConfig(**self._shared, **part_of(self.settings.peri_cr, PeriCRSettings))

    @functools.cached_property
    def tiger(self) -> Params:
        """TIGER's parameters."""
        settings = self.settings.tiger
        phase = tiger_phase(
            self.run.dataset,
            self.run.items.catalogue,
            self.tiger_config,
            settings,
            self._seed,
            self.run.settings.data.exposure_weight,
            self.run.pretraining.loss_tree,
            self._search,
        )
        return self._train(phase, settings)

    @functools.cached_property
    def two_tower(self) -> Params:
        """The pre-ranker's parameters."""
        config, settings = self.two_tower_config, self.settings.two_tower
        return self._train_seeing_items(two_tower_phase, config, settings)

    @functools.cached_property
    def hstu(self) -> Params:
        """HSTU's parameters."""
        return self._train_seeing_items(hstu_phase, self.hstu_config, self.settings.hstu)

    @functools.cached_property
    def peri_cr(self) -> Params:
        """Peri-CR's parameters."""
        return self._train_seeing_items(peri_cr_phase, self.peri_cr_config, self.settings.peri_cr)

    @functools.cached_property
    def book(self) -> AdBook | None:
        """The books of the log. The reserve is the auction's: recall depends on no bid."""
        return self.run.book(dataclasses.replace(self.run.levers, reserve=0.0))

    @property
    def _search(self) -> Ranked | None:
        """TIGER's search over the books of a batch: POIs of ads `[B, R]`; None without books."""
        book, catalogue, config = self.book, self.run.items.catalogue, self.tiger_config
        if book is None:
            return None
        most = self.settings.funnel.most_of(book.largest)

        @jax.jit
        def search(params: Params, batch: Mapping[str, Any]) -> jax.Array:
            decoder = GeneratorDecoder(params, config)

            def one(history_poi, history_creative, context, root):
                memory = decoder.encode(history_poi, history_creative, catalogue, context)
                ads = likeliest_ads(decoder, memory, book, root, most, most)
                return pick(book.poi, ads, -1)

            history = batch["history_poi"], batch["history_creative"]
            requests = *history, batch.get("context"), batch["book"]
            return lax.map(lambda request: one(*request), requests, batch_size=_SEARCHED_AT_ONCE)

        return search

    @property
    def settings(self) -> CascadeSettings:
        """The settings of the cascade."""
        return whole(self.run.settings).cascade

    @property
    def _seed(self) -> int:
        return self.run.settings.seed

    @property
    def _shared(self) -> dict[str, Any]:
        return self.run.pretraining.generator_config.shared

    def _train_seeing_items(
        self,
        phase_of: Callable[..., Phase],
        config: TwoTowerConfig | HSTUConfig | PeriCRConfig,
        settings: LoggedSettings,
    ) -> Params:
        phase = phase_of(self.run.dataset, self.run.items, config, settings, self._seed)
        return self._train(phase, settings)

    def _train(self, phase: Phase, settings: LoggedSettings) -> Params:
        return self.run.train_shared(phase, f"stages/{phase.name}", settings)
