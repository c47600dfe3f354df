"""The settings tree of the retrieval baselines."""

import dataclasses
from collections.abc import Iterator

from ega_jax.baselines.retrieval.item_knn import ItemKnnSettings
from ega_jax.baselines.retrieval.sasrec import SasrecSettings
from ega_jax.data.sequences import HELD_OUT
from ega_jax.setting import NOTHING, Tree, setting
from ega_jax.training.optimizer import OptimizerSettings
from ega_jax.training.settings import LoopSettings, warmup_problem


@dataclasses.dataclass(frozen=True)
class SequenceSettings:
    """The group `data`."""

    path: str = setting("data/sequences")  # Folder of the sequences.
    history_length: int = setting(20, at_least=1)  # T


@dataclasses.dataclass(frozen=True)
class SasrecOptimizerSettings(OptimizerSettings):
    """The group `optimizer`."""

    learning_rate: float = 2e-3


@dataclasses.dataclass(frozen=True)
class SasrecTrainingSettings(LoopSettings):
    """The group `training`."""

    evaluate_every: int = setting(500, at_least=0, binds=NOTHING)  # Steps; 0: never.


@dataclasses.dataclass(frozen=True)
class RankingSettings:
    """The group `evaluation`."""

    batch_size: int = setting(256, at_least=1)
    validation_rows: int = setting(4096, at_least=1)  # Evaluated during training.
    split: str = setting("test", choices=HELD_OUT)  # Evaluated at the end.


@dataclasses.dataclass(frozen=True)
class RetrievalSettings(Tree):
    """All settings of `experiments.retrieval_baselines`."""

    name: str = setting("retrieval")  # The default workdir is `runs/NAME`.
    seed: int = setting(0, at_least=0)
    data: SequenceSettings = setting(SequenceSettings())
    item_knn: ItemKnnSettings = setting(ItemKnnSettings())
    sasrec: SasrecSettings = setting(SasrecSettings())
    optimizer: SasrecOptimizerSettings = setting(SasrecOptimizerSettings())
    training: SasrecTrainingSettings = setting(SasrecTrainingSettings())
    evaluation: RankingSettings = setting(RankingSettings(), binds=NOTHING)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields a problem if the warm-up takes all the steps."""
        yield from warmup_problem(
            self.optimizer.warmup_steps, self.training.num_steps, "optimizer.warmup_steps"
        )
