"""The settings of the phases; the legend of the letters (K, T, B, ...) is in `ega_jax/types.py`.

A model's settings are defined beside the model; the settings of its training inherit them here.
The baselines add their groups in `ega_jax.baselines.settings`.
"""

import dataclasses
from collections.abc import Iterator

from ega_jax.auction.alignment import AlignmentSettings
from ega_jax.auction.pricing import RULES, Needs, PricingSettings
from ega_jax.auction.reserves import NO_RESERVES, RESERVES
from ega_jax.auction.settings import AllocationSettings
from ega_jax.data.ad_logs import SPLITS, Fractions
from ega_jax.data.market.config import MarketSettings
from ega_jax.data.sequences import HELD_OUT
from ega_jax.errors import UserError
from ega_jax.generation.network import GeneratorSettings
from ega_jax.payment.lagrangian import LagrangianConfig
from ega_jax.payment.network import HEADS
from ega_jax.phases.tokenization import TokenizerSettings
from ega_jax.reward.network import RewardSettings
from ega_jax.reward.weighting import WeightingSettings
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

    # Folder in one of the two formats; empty: the simulated market below. The tokenizers' folder
    # stores a checksum of the item embeddings and refuses other data.
    path: str = setting("", binds=NOTHING)
    history_length: int = setting(20, at_least=1)  # T
    num_slots: int = setting(0, at_least=0)  # K; 0: the ad log's, 1 for sequences.
    # Sequences: the share of co-occurrence in the item embeddings.
    interactions: float = setting(0.0, at_least=0, at_most=1)
    # Loss weight of an exposure without a click; a click weighs 1.
    exposure_weight: float = setting(0.1, at_least=0, below=1)
    # Ad logs: shares of the splits "pretrain", "align" and "tune", in time order; the rest is
    # "test". Nothing is trained on "tune", which `experiments.tune` judges on.
    fractions: Fractions = setting((0.7, 0.1, 0.05), at_least=0, at_most=1)
    market: MarketSettings = setting(MarketSettings())

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields a problem if no test sessions are left, or the market cannot fill its requests."""
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
    sort_by_length: bool = setting(True)  # Sequences: similar lengths in a batch.
    existing_codes_only: bool = setting(True)  # The loss normalises over codes that exist.
    evaluate_every: int = setting(500, at_least=0, binds=NOTHING)  # Steps; 0: never.


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """The group `evaluation`."""

    batch_size: int = setting(64, at_least=1)
    num_beams: int = setting(50, at_least=10)  # S; Recall@10 needs at least 10.
    validation_rows: int = setting(1024, at_least=1)  # Evaluated during training.
    split: str = setting("test", choices=(*HELD_OUT, *SPLITS))  # Used by experiments.evaluate.


@dataclasses.dataclass(frozen=True)
class RewardPhaseSettings(RewardSettings, WeightingSettings, LoggedSettings):
    """The group `reward`: the reward model and its training."""

    warmup_steps: int = 100


@dataclasses.dataclass(frozen=True)
class RetrainingSettings(LoggedSettings):
    """The group `retraining`: the reward model is trained further on the system's own slates."""

    # Sessions of "align" that the system serves. Only the users of a simulated market answer.
    num_sessions: int = setting(0, at_least=0)  # 0: the reward model is not retrained.
    num_steps: int = 1000
    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class AlignmentPhaseSettings(AlignmentSettings, StepSettings):
    """The group `alignment`: the policy gradient on the generator."""

    batch_size: int = 32
    num_steps: int = setting(200, at_least=0)  # 0: only pre-trained.
    learning_rate: float = 1e-4
    checkpoint_every: int = 50
    log_every: int = 10
    one_stage: bool = setting(False)  # Aligned during the pre-training, not after it (EGA-end).


@dataclasses.dataclass(frozen=True)
class PaymentSettings(PricingSettings, ScheduledSettings):
    """The group `payment`: the table of reports and the payment networks trained on it."""

    num_sessions: int = setting(2048, at_least=1)  # Rows of the table of reports.
    num_reports: int = setting(10, at_least=1)  # J
    tabulated_at_once: int = setting(16, at_least=1)  # Sessions per batch of the table.
    lagrangian: LagrangianConfig = setting(LagrangianConfig())

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields a problem if more misreports are drawn than exist, or probes do not increase."""
        if (sampled := self.lagrangian.sampled) > self.num_reports:
            yield "lagrangian.sampled", f"{sampled} of {self.num_reports} reports"
        if list(self.probes) != sorted(set(self.probes)):
            yield "probes", f"{self.probes} do not rise"
        if self.refinements and len(self.probes) < 3:
            yield "refinements", f"{self.refinements} need three probes, not {len(self.probes)}"


@dataclasses.dataclass(frozen=True)
class AuctionSettings:
    """The group `auction`: the system, the payment rule and the size of the evaluation.

    Numbers of sessions are approximate: whole batches, spread evenly over the split, are taken.
    """

    system: str = setting("ega")  # A kind of `ega_jax.systems.KINDS`.
    rule: str = setting("threshold", choices=RULES, binds=NOTHING)  # The payment rule.
    # Reserves of the log's ads in measuring. monopoly: the price of highest revenue from the past
    # bids of the other ads of the same first code.
    reserves: str = setting(NO_RESERVES, choices=RESERVES, binds=NOTHING)
    num_sessions: int = setting(128, at_least=1, binds=NOTHING)  # To measure incentives.
    num_served: int = setting(512, at_least=1, binds=NOTHING)  # To measure RPM and CTR.
    batch_size: int = setting(8, at_least=1, binds=NOTHING)
    num_losing: int = setting(4, at_least=0, binds=NOTHING)  # Unshown ads that misreport.


@dataclasses.dataclass(frozen=True)
class PhaseSettings(Tree):
    """All settings of the phases, from data to payment."""

    name: str = setting("ega")  # The default workdir is `runs/NAME`.
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
    retraining: RetrainingSettings = setting(RetrainingSettings(), binds=SYSTEM)
    payment: PaymentSettings = setting(PaymentSettings(), binds=SYSTEM)
    auction: AuctionSettings = setting(AuctionSettings(), binds=SYSTEM)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields a problem if the warm-up takes all steps, or a rule lacks its payment network."""
        yield from warmup_problem(
            self.optimizer.warmup_steps, self.training.num_steps, "optimizer.warmup_steps"
        )
        if self.retraining.num_sessions and self.reward.propensity_weight:
            yield "retraining.num_sessions", "own slates have no propensity to weigh by"
        if self.auction.rule in HEADS and self.auction.rule not in self.payment.heads:
            yield "auction.rule", f"{self.auction.rule} is no head of config.payment.heads"
        if RULES[self.auction.rule].needs is Needs.PROBES and not self.payment.probes:
            yield "auction.rule", f"{self.auction.rule} needs bids in config.payment.probes"
