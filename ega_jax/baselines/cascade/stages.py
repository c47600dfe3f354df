"""The cascade's stages that learn from logs, trained once per workdir for all who use them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from ega_jax.baselines.cascade.hstu import HSTUConfig, hstu_phase
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig, peri_cr_phase
from ega_jax.baselines.cascade.tiger import tiger_config, tiger_phase
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.logged import sizes_of
from ega_jax.training.loop import Phase
from ega_jax.types import Params, SessionSizes


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages that learn from logged feedback alone, bound to a workdir.

    Attributes:
      run: the system that asks for them; what it knows of data, items and config is read.
    """

    run: AuctionTraining

    @property
    def tiger_config(self) -> GeneratorConfig:
        """Sizes of TIGER: the generator's."""
        return tiger_config(self.run.pretraining.generator_config)

    @property
    def hstu_config(self) -> HSTUConfig:
        """Sizes of HSTU."""
        return self._sizes(HSTUConfig, "hstu")

    @property
    def peri_cr_config(self) -> PeriCRConfig:
        """Sizes of Peri-CR."""
        return self._sizes(PeriCRConfig, "peri_cr")

    @functools.cached_property
    def tiger(self) -> Params:
        """The recall's parameters."""
        settings = self.settings["tiger"]
        phase = tiger_phase(
            self.run.dataset,
            self.run.items.catalogue,
            self.tiger_config,
            settings,
            self._seed,
            self.run.config["data"]["exposure_weight"],
            self.run.pretraining.loss_tree,
        )
        return self._train(phase, settings)

    @functools.cached_property
    def hstu(self) -> Params:
        """The ranker's parameters."""
        return self._train_seeing_items("hstu", hstu_phase, self.hstu_config)

    @functools.cached_property
    def peri_cr(self) -> Params:
        """The creative chooser's parameters."""
        return self._train_seeing_items("peri_cr", peri_cr_phase, self.peri_cr_config)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the cascade."""
        return self.run.config["cascade"]

    @property
    def _seed(self) -> int:
        return self.run.config["seed"]

    def _sizes(self, kind: Any, name: str) -> Any:
        return sizes_of(kind, self.settings[name], **self.run.pretraining.generator_config.shared)

    def _train_seeing_items(
        self, name: str, phase_of: Callable[..., Phase], config: SessionSizes
    ) -> Params:
        run, settings = self.run, self.settings[name]
        return self._train(phase_of(run.dataset, run.items, config, settings, self._seed), settings)

    def _train(self, phase: Phase, settings: Mapping[str, Any]) -> Params:
        return self.run.train_shared(phase, f"stages/{phase.name}", settings)
