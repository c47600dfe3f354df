"""The settings that the phases read; letters are those of the legend in `ega_jax/types.py`.

Settings of a model stand beside the model and are inherited here by those of its training. The
baselines add their groups in `ega_jax.baselines.settings`.
"""

import dataclasses
from collections.abc import Iterator

from ega_jax.auction.alignment import AlignmentSettings
from ega_jax.auction.pricing import RULES, PricingSettings
from ega_jax.auction.settings import AllocationSettings
from ega_jax.data.ad_logs import SPLITS
from ega_jax.data.market.config import MarketSettings
from ega_jax.data.sequences import HELD_OUT
from ega_jax.errors import UserError
from ega_jax.generation.network import GeneratorSettings
from ega_jax.payment.lagrangian import LagrangianConfig
from ega_jax.payment.network import HEADS
from ega_jax.phases.tokenization import TokenizerSettings
from ega_jax.reward.network import RewardSettings
from ega_jax.setting import NOTHING, SYSTEM, Tree, setting
from ega_jax.training.optimizer import OptimizerSettings
from ega_jax.training.settings import (
    LoggedSettings,
    LoopSettings,
    ScheduledSettings,
    StepSettings,
    warmup_problem,
)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The group `data`."""

    # Folder in one of the two formats; empty: the market below. Tokens bind it, by a checksum.
    path: str = setting("", binds=NOTHING)
    history_length: int = setting(20, at_least=1)  # T
    num_slots: int = setting(0, at_least=0)  # K; 0: as the ad log says; 1 for sequences.
    # Share of co-occurrence in the embeddings of sequences.
    interactions: float = setting(0.0, at_least=0, at_most=1)
    # Loss weight of what was shown but not clicked; a click has 1.
    exposure_weight: float = setting(0.1, at_least=0, below=1)
    # Ad logs: shares of the splits "pretrain" and "align", in time; the rest is "test".
    fractions: tuple[float, float] = setting((0.8, 0.1), above=0, at_most=1)
    market: MarketSettings = setting(MarketSettings())

    def problems(self) -> Iterator[tuple[str, str]]:
        """Splits that leave no test sessions, and a market that cannot fill its requests."""
        if sum(self.fractions) >= 1:
            yield "fractions", f"{self.fractions} leave no test sessions"
        try:
            _ = self.market.config
        except UserError as error:
            yield "market", str(error)


@dataclasses.dataclass(frozen=True)
class TrainingSettings(LoopSettings):
    """The group `training`: the generator's pre-training."""

    num_steps: int = 1000
    checkpoint_every: int = 500
    sort_by_length: bool = setting(True)  # Sequences: batches of like length, less padding.
    existing_codes_only: bool = setting(True)  # Softmax over codes that exist, as in the search.
    evaluate_every: int = setting(500, at_least=0, binds=NOTHING)  # Steps; 0: never.


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """The group `evaluation`."""

    batch_size: int = setting(64, at_least=1)
    num_beams: int = setting(50, at_least=10)  # S; Recall@10 takes 10.
    validation_rows: int = setting(1024, at_least=1)  # Every `training.evaluate_every` steps.
    split: str = setting("test", choices=(*HELD_OUT, *SPLITS))  # For experiments.evaluate.


@dataclasses.dataclass(frozen=True)
class RewardPhaseSettings(RewardSettings, LoggedSettings):
    """The group `reward`: the reward model and its training."""

    warmup_steps: int = 100


@dataclasses.dataclass(frozen=True)
class AlignmentPhaseSettings(AlignmentSettings, StepSettings):
    """The group `alignment`: the policy gradient on the generator."""

    batch_size: int = 32
    num_steps: int = setting(200, at_least=0)  # 0: the generator stays as pre-trained.
    learning_rate: float = 1e-4
    checkpoint_every: int = 50
    log_every: int = 10
    # Not 0: one stage with the pre-training (EGA-end), on so many rows of each batch.
    joint_rows: int = setting(0, at_least=0)


@dataclasses.dataclass(frozen=True)
class PaymentSettings(PricingSettings, ScheduledSettings):
    """The group `payment`: the table of reports and the payment networks trained on it."""

    num_sessions: int = setting(2048, at_least=1)  # Of the table of reports.
    num_reports: int = setting(10, at_least=1)  # J
    tabulated_at_once: int = setting(16, at_least=1)  # Sessions.
    lagrangian: LagrangianConfig = setting(LagrangianConfig())

    def problems(self) -> Iterator[tuple[str, str]]:
        """More misreports drawn than there are, and probes that do not rise."""
        if (sampled := self.lagrangian.sampled) > self.num_reports:
            yield "lagrangian.sampled", f"{sampled} of {self.num_reports} reports"
        if list(self.probes) != sorted(set(self.probes)):
            yield "probes", f"{self.probes} do not rise"


@dataclasses.dataclass(frozen=True)
class AuctionSettings:
    """The group `auction`: what is auctioned by, and how it is measured.

    Numbers of sessions are upper bounds, in whole batches evenly spread over the split.
    """

    system: str = setting("ega")  # A kind of `ega_jax.systems.KINDS`.
    rule: str = setting("threshold", choices=RULES, binds=NOTHING)  # The payment rule.
    num_sessions: int = setting(128, at_least=1, binds=NOTHING)  # Whose every report is tried.
    num_served: int = setting(512, at_least=1, binds=NOTHING)  # Whose money and clicks are counted.
    batch_size: int = setting(8, at_least=1, binds=NOTHING)
    num_losing: int = setting(4, at_least=0, binds=NOTHING)  # Ads outside a slate that are tried.


@dataclasses.dataclass(frozen=True)
class PhaseSettings(Tree):
    """All that the phases read, from data to payment."""

    name: str = setting("ega")  # Of the default workdir, `runs/NAME`.
    seed: int = setting(0, at_least=0)
    data: DataSettings = setting(DataSettings())
    tokenizer: TokenizerSettings = setting(TokenizerSettings())
    generator: GeneratorSettings = setting(GeneratorSettings())
    optimizer: OptimizerSettings = setting(OptimizerSettings())
    training: TrainingSettings = setting(TrainingSettings())
    evaluation: EvaluationSettings = setting(EvaluationSettings(), binds=NOTHING)
    reward: RewardPhaseSettings = setting(RewardPhaseSettings(), binds=SYSTEM)
    allocation: AllocationSettings = setting(AllocationSettings(), binds=SYSTEM)
    alignment: AlignmentPhaseSettings = setting(AlignmentPhaseSettings(), binds=SYSTEM)
    payment: PaymentSettings = setting(PaymentSettings(), binds=SYSTEM)
    auction: AuctionSettings = setting(AuctionSettings(), binds=SYSTEM)

    def problems(self) -> Iterator[tuple[str, str]]:
        """A warm-up that leaves no step, and a rule without its payment network."""
        yield from warmup_problem(
            self.optimizer.warmup_steps, self.training.num_steps, "optimizer.warmup_steps"
        )
        if self.auction.rule in HEADS and self.auction.rule not in self.payment.heads:
            yield "auction.rule", f"{self.auction.rule} is no head of config.payment.heads"
