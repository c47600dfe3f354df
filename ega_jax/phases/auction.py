"""Training from a pre-trained generator to an auction with prices (sec. 4.4.2).

There are four phases: the reward model on logged feedback, the generator's alignment by policy
gradient, the table of outcomes of truthful and false reports, and the payment network on that
table. A phase that an earlier run finished is restored. The reward model is stored in a folder of
the workdir that all systems share; the other phases are stored in the system's own folder.
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
from ega_jax.auction.reserves import NO_RESERVES, monopoly_prices
from ega_jax.auction.settings import LeverSettings
from ega_jax.auction.system import Levers, System, check_levers
from ega_jax.data import pipeline
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.data.market.audience import Audience
from ega_jax.errors import UserError
from ega_jax.generation.ad_book import AdBook
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.mechanism import Mechanism
from ega_jax.payment import lagrangian, network, regret
from ega_jax.payment.network import PaymentConfig
from ega_jax.phases import retraining
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.requests import request_of
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
from ega_jax.types import AnyRequest, Params


@dataclasses.dataclass(frozen=True)
class SystemKind:
    """A kind of system, as commands, tables, checks and training use it.

    Attributes:
      train: trains the models that choose slates, from the last checkpoints if there are any.
      changes: settings by dotted name that differ in its row of the tables.
      check: raises `UserError` if the kind does not support the settings.
    """

    train: Callable[["AuctionTraining"], System]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check: Callable[[PhaseSettings], None] = lambda settings: None


@dataclasses.dataclass(frozen=True)
class AuctionTraining:
    """The phases from a pre-trained generator to a mechanism, bound to a workdir.

    Attributes:
      pretraining: the data, tokens and pre-trained generator.
      folder: the system's folder in the workdir.
      kind: trains the models that choose slates; all other phases are the same for every system.
    """

    pretraining: Pretraining
    folder: Path
    kind: SystemKind

    @property
    def name(self) -> str:
        """The system's name in its workdir."""
        return self.folder.name

    @property
    def settings(self) -> PhaseSettings:
        """The settings of all phases."""
        return self.pretraining.settings

    @property
    def dataset(self) -> AdLogDataset:
        """The ad log.

        Raises:
          UserError: the data are sequences, which have no auction.
        """
        return self.pretraining.ad_log

    @functools.cached_property
    def system(self) -> System:
        """The trained system, which allocates slates.

        Raises:
          UserError: its reward model is to be retrained on its own slates, and nobody answers.
        """
        if not self.settings.retraining.num_sessions:
            return self.kind.train(self)
        users = self.users
        trained = self.kind.train(self)
        return dataclasses.replace(trained, reward=self._retrained(trained, users))

    @property
    def users(self) -> Audience:
        """The users of a simulated market, who answer what a system serves.

        Raises:
          UserError: the log is not that of a simulated market.
        """
        try:
            return Audience.load(self.pretraining.folder)
        except FileNotFoundError as error:
            raise UserError(f"config.retraining.num_sessions: nobody answers ({error})") from error

    def _retrained(self, system: System, users: Audience) -> Params:
        """The reward model's parameters, trained further on what the system serves."""
        size, key = retraining.SERVED_AT_ONCE, self.key(8)
        bare = PricingConfig(heads=(), probes=())
        mechanism = Mechanism(system, {}, bare, self.levers, "first_price")
        batches = list(self.sessions("align", self.settings.retraining.num_sessions, size))
        key_of = lambda number: jax.random.fold_in(key, number)
        answers = lambda n: retraining.answered(mechanism, batches[n], users, key_of(n))
        path = self.folder / "tables" / "traffic"
        rows = dict(tabulated(path, len(batches), answers, size, f"{self.name}: own traffic"))
        model = self.dataset, self.items, self.reward_config, self.settings
        return self.train_phase(retraining.retraining_phase(*model, rows, self.reward))

    @functools.cached_property
    def mechanism(self) -> Mechanism:
        """The system with its payment rules; unfinished phases are trained first.

        Its models are trained without the reserves of `auction.reserves`.

        Raises:
          UserError: there are to be reserves, and the log has no books.
        """
        reserves = self.reserves  # Raises before anything is trained.
        mechanism = Mechanism(
            system=self.system,
            networks=self.networks,
            pricing=self.pricing_config,
            levers=self.levers,
            rule=self.settings.auction.rule,
        )
        if reserves is None:
            return mechanism
        return mechanism.with_book(self.book(self.levers, reserve=reserves))

    @property
    def reward_config(self) -> RewardConfig:
        """The reward model's config."""
        return self.reward_config_of(self.settings.reward)

    def reward_config_of(self, settings: RewardSettings) -> RewardConfig:
        """The config of a reward model with other settings."""
        own = part_of(settings, RewardSettings)
        return RewardConfig(**self.pretraining.generator_config.shared, **own)

    @property
    def pricing_config(self) -> PricingConfig:
        """The static config of the payment rules."""
        return PricingConfig(**part_of(self.settings.payment, PricingSettings))

    @property
    def levers(self) -> Levers:
        """The run-time settings used to train and to measure the system.

        A slate has at most as many ads as the log allows and as the settings allow.
        """
        given = part_of(self.settings.allocation, LeverSettings)
        limits = given["max_ads"], self.dataset.summary.max_ads
        given["max_ads"] = min(limit or Levers.max_ads for limit in limits)
        return check_levers(Levers(), given)

    def ledger(
        self,
        levers: Levers,
        search_bid: np.ndarray | None = None,
        reserve: np.ndarray | None = None,
    ) -> BookLedger | None:
        """The books of the log under given levers, whose bids may change; None without books.

        Args:
          levers: the run-time settings.
          search_bid: `[n]` bids that a bid-free search sees; default: 0.
          reserve: `[n]` least bid and price of each ad; default: 0.

        Raises:
          UserError: past bids are to smooth the live ones, and the log has none.
        """
        books, settings = self.dataset.books, self.settings.allocation
        if settings.bid_smoothing and (books is None or not self.past_bids.any()):
            raise UserError("config.allocation.bid_smoothing: the log's books have no past bids")
        if books is None:
            return None
        smoothing = 1.0 if levers.bid_free else settings.bid_smoothing
        if search_bid is None and smoothing:
            search_bid = np.zeros_like(books.bid) if levers.bid_free else self.past_bids
        return BookLedger(
            books.poi,
            books.bid,
            books.book_start,
            self.pretraining.tokens["poi"].codes,
            self.pretraining.generator_config.num_codes,
            num_slots=self.dataset.summary.num_slots,
            search_bid=search_bid,
            smoothing=None if search_bid is None else smoothing,
            reserve=reserve,
            eligible=books.bid >= float(levers.reserve),
            token_bid=settings.token_bid,
            scope=settings.scope,
        )

    def book(
        self,
        levers: Levers,
        search_bid: np.ndarray | None = None,
        reserve: np.ndarray | None = None,
    ) -> AdBook | None:
        """The books of `ledger` as the search sees them; None without books."""
        ledger = self.ledger(levers, search_bid, reserve)
        return None if ledger is None else ledger.book

    def truthful_book(self, levers: Levers) -> AdBook | None:
        """The books of the log as the exactly truthful mode searches them; None without books.

        The search sees past bids alone, and so do the reserves. Where tokens weigh by expected
        revenue, the search computes the reserves, as they depend on click rates.
        """
        books, settings = self.dataset.books, self.settings.allocation
        if books is None:
            return None
        past, reserve = self.past_bids, None
        if settings.reserve_rank and settings.token_value == "bid":
            reserve = books.competing_bids(past, settings.reserve_rank)
        return self.book(levers, past, reserve)

    @functools.cached_property
    def past_bids(self) -> np.ndarray:
        """What the ads of the log's books bid before, `[n]` float32 currency per click."""
        books = self.dataset.books
        assert books is not None, "the log has no books"
        return books.past_bids(self.dataset.first_uses())

    @functools.cached_property
    def reserves(self) -> np.ndarray | None:
        """The reserves `[n]` of the ads of the log's books in measuring; None without reserves.

        They are monopoly prices of past bids. The ads of a book whose POIs share their first code
        compete.

        Raises:
          UserError: the log has no books.
        """
        books = self.dataset.books
        if self.settings.auction.reserves == NO_RESERVES:
            return None
        if books is None:
            raise UserError("config.auction.reserves: the log has no books, so no past bids")
        past = self.past_bids
        codes = self.pretraining.generator_config.num_codes
        category = books.number * codes + self.pretraining.tokens["poi"].codes[books.poi, 0]
        return monopoly_prices(past, category)

    @functools.cached_property
    def items(self):
        """The item features that the reward model and the allocation read."""
        tokens = self.pretraining.tokens
        creatives = tokens["creative"].num_fitted if "creative" in tokens else None
        fitted = tokens["poi"].num_fitted, creatives
        return items_of(self.dataset, self.pretraining.catalogue, fitted)

    @functools.cached_property
    def reward(self) -> Params:
        """The reward model's parameters, trained on logged feedback (30).

        Raises:
          ConfigMismatchError: the workdir's reward model was trained with other settings.
        """
        settings, seed = self.settings.reward, self.settings.seed
        phase = reward_phase(self.dataset, self.items, self.reward_config, settings, seed)
        return self.train_shared(phase, "reward", settings)

    @functools.cached_property
    def networks(self) -> dict[str, Params]:
        """The payment networks' parameters by head."""
        heads = self.pricing_config.heads
        return {head: self.train_phase(self._payment_phase(head)) for head in heads}

    def train_phase(self, phase: Phase, folder: Path | None = None) -> Params:
        """Trains a phase to its end, from its last checkpoint if there is one.

        Args:
          phase: the phase to train.
          folder: the folder for its checkpoints; default: the system's folder.
        """
        trained = train(
            phase,
            workdir=folder or self.folder,
            config=self.settings.to_dict(),
            mesh=self.pretraining.mesh,
        ).params
        # Parameters of different phases are used together, so none may stay bound to the mesh.
        return unbound(trained)

    def train_shared(
        self, phase: Phase, folder: str, settings: LoggedSettings, **others: Any
    ) -> Params:
        """Trains a phase that all systems of a workdir share, in a folder of its own.

        Args:
          phase: the phase to train.
          folder: a folder in the workdir.
          settings: the phase's settings; `folder` is bound to these and to the settings of data,
            tokens and seed.
          **others: what else the folder is bound to.

        Raises:
          ConfigMismatchError: the folder was trained with other settings.
        """
        place = self.pretraining.workdir / folder
        config = self.settings.to_dict()
        shared = {name: config[name] for name in ("seed", "data", "tokenizer")}
        shared |= {phase.name: dataclasses.asdict(settings), **others}
        free = self.settings.free(SYSTEM) + free_fields(settings, SYSTEM, f"{phase.name}.")
        check_workdir(place, shared, free)
        return self.train_phase(phase, place)

    def sessions(self, split: str, num_sessions: int, batch_size: int) -> grain.IterDataset:
        """Returns about `num_sessions` sessions, in whole batches spread evenly over the split.

        They are at most as many as the batches that this number fills.
        """
        return pipeline.eval_batches(
            self.dataset,
            split,
            batch_size=batch_size,
            history_length=self.settings.data.history_length,
            max_batches=-(-num_sessions // batch_size),
        )

    @functools.cached_property
    def table(self) -> dict[str, np.ndarray]:
        """Outcomes of truthful bids and sampled misreports in "align" sessions, computed once."""
        settings = self.settings.payment
        system, levers, pricing = self.system, self.levers, self.pricing_config
        key, num_reports = self.key(5), settings.num_reports

        @jax.jit
        def tabulate(system: System, batch: dict[str, jax.Array], keys: jax.Array):
            def one(x: tuple[AnyRequest, jax.Array]):
                request, key = x
                return tabulate_request(system, pricing, request, levers, key, num_reports)

            return regret.batch_of(map_rows(one, (request_of(batch), keys)))

        size = settings.tabulated_at_once
        batches = list(self.sessions("align", settings.num_sessions, size))
        keys_of = lambda number: jax.random.split(jax.random.fold_in(key, number), size)
        rows_of = lambda number: tabulate(system, batches[number], keys_of(number))
        path = self.folder / "tables" / "payment"
        return dict(tabulated(path, len(batches), rows_of, size))

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
        """Returns the random key with a number; each purpose has its own number."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), number)
