"""The cascade's stages that are trained on logs, once per workdir for all systems."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from ega_jax.baselines.cascade.hstu import HSTUConfig, HSTUSettings, hstu_phase
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig, PeriCRSettings, peri_cr_phase
from ega_jax.baselines.cascade.tiger import tiger_config, tiger_phase
from ega_jax.baselines.settings import CascadeSettings, whole
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.phases.auction import AuctionTraining
from ega_jax.setting import part_of
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.types import Params


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
        )
        return self._train(phase, settings)

    @functools.cached_property
    def hstu(self) -> Params:
        """HSTU's parameters."""
        return self._train_seeing_items(hstu_phase, self.hstu_config, self.settings.hstu)

    @functools.cached_property
    def peri_cr(self) -> Params:
        """Peri-CR's parameters."""
        return self._train_seeing_items(peri_cr_phase, self.peri_cr_config, self.settings.peri_cr)

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
        config: HSTUConfig | PeriCRConfig,
        settings: LoggedSettings,
    ) -> Params:
        phase = phase_of(self.run.dataset, self.run.items, config, settings, self._seed)
        return self._train(phase, settings)

    def _train(self, phase: Phase, settings: LoggedSettings) -> Params:
        return self.run.train_shared(phase, f"stages/{phase.name}", settings)
