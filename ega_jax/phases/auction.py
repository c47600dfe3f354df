"""The main job's second half: from a pre-trained generator to a priced auction (sec. 4.4.2).

Four phases, each restored from the workdir where an earlier run has finished it: the reward model
on logged feedback, the generator's alignment by policy gradient, the table of what every report
leads to, and the payment network on that table. The reward model belongs to the workdir; the rest
belongs to a system, a folder below it, so that several systems share what they may.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.auction.outcomes import tabulate_request
from ega_jax.auction.pricing import PricingConfig, PricingSettings
from ega_jax.auction.settings import LeverSettings
from ega_jax.auction.system import Levers, System, check_levers
from ega_jax.data import pipeline
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.mechanism import Mechanism
from ega_jax.payment import lagrangian, network, regret
from ega_jax.payment.network import PaymentConfig
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.reward import items_of, reward_phase
from ega_jax.phases.settings import PhaseSettings
from ega_jax.reward.model import RewardConfig
from ega_jax.reward.network import RewardSettings
from ega_jax.setting import SYSTEM, free_fields, part_of
from ega_jax.training.checkpoints import check_workdir
from ega_jax.training.loop import Phase, train
from ega_jax.training.mesh import map_rows, unbound
from ega_jax.training.settings import LoggedSettings
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.training.tabulation import tabulated
from ega_jax.types import Params, Request


@dataclasses.dataclass(frozen=True)
class SystemKind:
    """A kind of system, as commands, tables, checks and training know it.

    Attributes:
      train: trains its parameters up to its slates, from the last checkpoints if there are any.
      changes: settings, by dotted name, that its row in tables sets.
      check: refuses settings that the kind cannot take; raises `UserError`.
    """

    train: Callable[["AuctionTraining"], System]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check: Callable[[PhaseSettings], None] = lambda settings: None


@dataclasses.dataclass(frozen=True)
class AuctionTraining:
    """The phases from a pre-trained generator to a mechanism, bound to a workdir.

    Attributes:
      pretraining: the first half, finished.
      folder: of this system, below the workdir.
      kind: what is trained up to its slates; the rest is the same for all systems.
    """

    pretraining: Pretraining
    folder: Path
    kind: SystemKind

    @property
    def name(self) -> str:
        """Of the system in its workdir."""
        return self.folder.name

    @property
    def settings(self) -> PhaseSettings:
        """Of the whole job."""
        return self.pretraining.settings

    @property
    def dataset(self) -> AdLogDataset:
        """The ad log.

        Raises:
          UserError: the workdir is of sequences, which have no auction.
        """
        return self.pretraining.ad_log

    @functools.cached_property
    def system(self) -> System:
        """What allocates slates, trained."""
        return self.kind.train(self)

    @functools.cached_property
    def mechanism(self) -> Mechanism:
        """The system with its prices; phases that are not finished are trained first."""
        return Mechanism(
            system=self.system,
            networks=self.networks,
            pricing=self.pricing_config,
            levers=self.levers,
            rule=self.settings.auction.rule,
        )

    @property
    def reward_config(self) -> RewardConfig:
        """Sizes of the reward model."""
        own = part_of(self.settings.reward, RewardSettings)
        return RewardConfig(**self.pretraining.generator_config.shared, **own)

    @property
    def pricing_config(self) -> PricingConfig:
        """What is compiled into the prices."""
        return PricingConfig(**part_of(self.settings.payment, PricingSettings))

    @property
    def levers(self) -> Levers:
        """The run-time settings that the system is trained and measured with."""
        given = part_of(self.settings.allocation, LeverSettings)
        given["max_ads"] = given["max_ads"] or Levers.max_ads
        return check_levers(Levers(), given)

    @functools.cached_property
    def items(self):
        """What reward model and allocation know of the items."""
        tokens = self.pretraining.tokens
        creatives = tokens["creative"].num_fitted if "creative" in tokens else None
        fitted = tokens["poi"].num_fitted, creatives
        return items_of(self.dataset, self.pretraining.catalogue, fitted)

    @functools.cached_property
    def reward(self) -> Params:
        """The reward model's parameters, trained on logged feedback (30).

        Raises:
          ConfigMismatchError: the workdir's was trained with other settings.
        """
        settings, seed = self.settings.reward, self.settings.seed
        phase = reward_phase(self.dataset, self.items, self.reward_config, settings, seed)
        return self.train_shared(phase, "reward", settings)

    @functools.cached_property
    def networks(self) -> dict[str, Params]:
        """The payment network's parameters by head."""
        heads = self.pricing_config.heads
        return {head: self.train_phase(self._payment_phase(head)) for head in heads}

    def train_phase(self, phase: Phase, folder: Path | None = None) -> Params:
        """Trains a phase to its end, from its last checkpoint if there is one.

        Args:
          phase: what is trained.
          folder: where its checkpoints are kept; by default the system's.
        """
        trained = train(
            phase,
            workdir=folder or self.folder,
            config=self.settings.to_dict(),
            mesh=self.pretraining.mesh,
        ).params
        # Off the mesh: what one phase trained is used beside what another restored.
        return unbound(trained)

    def train_shared(self, phase: Phase, folder: str, settings: LoggedSettings) -> Params:
        """Trains a phase that the systems of a workdir share, in a folder of its own.

        Args:
          phase: what is trained.
          folder: below the workdir.
          settings: its own; `folder` is bound to these, to data, tokens and seed.

        Raises:
          ConfigMismatchError: the folder holds what was trained with other settings.
        """
        place = self.pretraining.workdir / folder
        config = self.settings.to_dict()
        shared = {name: config[name] for name in ("seed", "data", "tokenizer")}
        shared[phase.name] = dataclasses.asdict(settings)
        free = self.settings.free(SYSTEM) + free_fields(settings, SYSTEM, f"{phase.name}.")
        check_workdir(place, shared, free)
        return self.train_phase(phase, place)

    def sessions(self, split: str, num_sessions: int, batch_size: int) -> grain.IterDataset:
        """About so many sessions of a split, in whole batches, evenly spread over it."""
        return pipeline.eval_batches(
            self.dataset,
            split,
            batch_size=batch_size,
            history_length=self.settings.data.history_length,
            max_batches=-(-num_sessions // batch_size),
        )

    @functools.cached_property
    def table(self) -> dict[str, np.ndarray]:
        """Outcomes of truth and of sampled misreports in the "align" sessions, made once."""
        settings = self.settings.payment
        system, levers, pricing = self.system, self.levers, self.pricing_config
        key, num_reports = self.key(5), settings.num_reports

        @jax.jit
        def tabulate(system: System, batch: dict[str, jax.Array], keys: jax.Array):
            def one(x: tuple[Request, jax.Array]):
                request, key = x
                return tabulate_request(system, pricing, request, levers, key, num_reports)

            return regret.batch_of(map_rows(one, (request_of(batch), keys)))

        size = settings.tabulated_at_once
        batches = list(self.sessions("align", settings.num_sessions, size))
        keys_of = lambda number: jax.random.split(jax.random.fold_in(key, number), size)
        rows_of = lambda number: tabulate(system, batches[number], keys_of(number))
        path = self.folder / "tables" / "payment"
        return tabulated(path, len(batches), size, rows_of)

    def _payment_phase(self, head: str) -> Phase:
        settings, table = self.settings.payment, self.table
        model = PaymentConfig(head, self.pricing_config.hidden)
        duals, optimizer = settings.lagrangian, settings.optimizer()
        num_slots = table["where"].shape[1]

        def init() -> TrainState:
            sample = regret.table_of({name: jnp.asarray(x[:1]) for name, x in table.items()})
            params = network.init(self.key(6), model, sample.truth.context)
            return TrainState.create(params, optimizer, lagrangian.start(duals, num_slots))

        return Phase(
            name=f"payment_{head}",
            init=init,
            step=make_train_step(lagrangian.payment_loss(model, duals), optimizer, self.key(7)),
            batches=pipeline.array_batches(
                table,
                batch_size=settings.batch_size,
                seed=self.settings.seed,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            num_steps=settings.num_steps,
            checkpoint_every=settings.checkpoint_every,
            log_every=settings.log_every,
        )

    def key(self, number: int) -> jax.Array:
        """A random key for each purpose."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), number)


def real_rows(batch: Mapping[str, Any]) -> np.ndarray:
    """The rows `[B]` bool of a batch that hold a request; a last batch is filled up with blanks."""
    return np.any(np.asarray(batch["item"]) >= 0, axis=-1)


def request_of(batch: Mapping[str, Any]) -> Request:
    """Picks the fields of `Request` from a batch that may hold more."""
    return Request(**{name: batch[name] for name in Request.__dataclass_fields__})
