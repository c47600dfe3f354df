"""Training the cascade's stages: TIGER, HSTU and Peri-CR, then CGA, then CrossDQN."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ega_jax.auction.system import pick_each
from ega_jax.baselines.cascade import cga, cross_dqn
from ega_jax.baselines.cascade.arrangements import Queues
from ega_jax.baselines.cascade.cga import Ads, CGAConfig
from ega_jax.baselines.cascade.cross_dqn import CrossDQNConfig, CrossDQNSettings
from ega_jax.baselines.cascade.mca import (
    MCA,
    MCAConfig,
    Ranked,
    Upstream,
    ads_of,
    list_ads,
    queues_of,
    rank,
)
from ega_jax.baselines.cascade.stages import Stages
from ega_jax.baselines.settings import check_stages, whole
from ega_jax.errors import UserError
from ega_jax.generation.network import NetworkSettings
from ega_jax.phases.auction import AuctionTraining, request_of
from ega_jax.phases.settings import PhaseSettings
from ega_jax.reward import model as reward_model
from ega_jax.setting import part_of
from ega_jax.types import Params, organic_pois


def train_mca(run: AuctionTraining) -> MCA:
    """Trains all stages of the cascade and returns it.

    Raises:
      UserError: the log's sessions name books; the stages read a request's own list of ads.
    """
    if run.dataset.books is not None:
        raise UserError("auction.system=mca reads 'ad_poi' of sessions, and this log has books")
    return Cascade(run).system


def check_mca(settings: PhaseSettings) -> None:
    """Refuses training in one stage, and CrossDQN screens that do not divide a market's slate.

    Raises:
      UserError: names the field.
    """
    check_stages(settings)
    slots, screen = settings.data.market.num_slots, whole(settings).cascade.cross_dqn.screen
    if slots % screen:
        raise UserError(
            f"config.cascade.cross_dqn.screen: screens of {screen} slots do not fill {slots}"
        )


@dataclasses.dataclass(frozen=True)
class Cascade:
    """The stages in sequence; each is trained at its first use.

    Attributes:
      run: the training that the cascade is part of.
    """

    run: AuctionTraining

    @property
    def system(self) -> MCA:
        """The trained cascade with the reward model and the items."""
        return MCA(
            reward=self.run.reward,
            items=self.run.items,
            upstream=self.upstream,
            cga=self.cga,
            cross_dqn=self.cross_dqn,
            config=self.config,
        )

    @functools.cached_property
    def stages(self) -> Stages:
        """The stages that are trained on logged feedback only."""
        return Stages(self.run)

    @functools.cached_property
    def config(self) -> MCAConfig:
        """The configs of all stages; sizes that do not fit raise an error before any training."""
        settings = whole(self.run.settings).cascade
        slots = self.run.dataset.summary.num_slots
        return MCAConfig(
            tiger=self.stages.tiger_config,
            hstu=self.stages.hstu_config,
            peri_cr=self.stages.peri_cr_config,
            cga=CGAConfig(**part_of(settings.cga, NetworkSettings), num_ads=slots),
            cross_dqn=CrossDQNConfig(
                **part_of(settings.cross_dqn, CrossDQNSettings), num_slots=slots
            ),
            reward=self.run.reward_config,
            num_recalled=settings.num_recalled,
        )

    @functools.cached_property
    def upstream(self) -> Upstream:
        """The parameters of the stages before the auction."""
        tree = self.run.pretraining.loss_tree
        return Upstream(self.stages.tiger, self.stages.hstu, self.stages.peri_cr, tree)

    @functools.cached_property
    def cga(self) -> Params:
        """CGA's parameters, trained with the reward model as evaluator."""
        phase = cga.cga_phase(
            self.run.dataset,
            self.config.cga,
            whole(self.run.settings).cascade.cga,
            self.run.settings.seed,
            history_length=self.config.tiger.history_length,
            state_width=self.config.hstu.width,
            view=self._ads,
            judge=self._clicks,
            kappa=self.run.levers.kappa,
        )
        return self.run.train_phase(phase)

    @functools.cached_property
    def cross_dqn(self) -> Params:
        """CrossDQN's parameters, trained on the lists of the trained CGA."""
        levers = self.run.levers
        phase = cross_dqn.cross_dqn_phase(
            self.run.dataset,
            self.config.cross_dqn,
            whole(self.run.settings).cascade.cross_dqn,
            self.run.settings.seed,
            history_length=self.config.tiger.history_length,
            state_width=self.config.hstu.width,
            view=self._queues(self.cga),
            judge=self._values,
            max_ads=int(levers.max_ads),
            min_gap=int(levers.min_gap),
        )
        return self.run.train_phase(phase)

    @functools.cached_property
    def _ranked(self) -> Callable[[Mapping[str, Any]], Ranked]:
        """A function that ranks the candidates of a batch with the trained upstream stages."""
        config, upstream, items = self.config, self.upstream, self.run.items
        each = jax.vmap(lambda request: rank(upstream, config, items, request))
        return lambda batch: each(request_of(batch))

    @functools.cached_property
    def _clicks(self) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
        """The reward model's click probabilities `[B, R, L]` of candidates in lists `[B, R, L]`."""
        run, ranked = self.run, self._ranked
        model = run.reward, run.reward_config, run.items

        def one(history_poi, history_creative, organic, context, *shown):
            memory = reward_model.encode(*model, history_poi, history_creative, organic, context)
            return reward_model.predict(*model, memory, *shown).click_poi

        def clicks(batch: Mapping[str, Any], lists: jax.Array) -> jax.Array:
            shown = (
                pick_each(batch["item"], lists, -1),
                pick_each(ranked(batch).creative, lists, -1),
                pick_each(batch["is_ad"], lists, False),
            )
            history = batch["history_poi"], batch["history_creative"]
            request = *history, organic_pois(batch), batch.get("context")
            return jax.vmap(one)(*request, *shown)

        return clicks

    def _values(self, batch: Mapping[str, Any], slates: jax.Array) -> jax.Array:
        """Returns the expected currency `[B, K]` of each slot of slates `[B, K]`."""
        bid = pick_each(batch["bid"], slates, 0.0)
        clicks = self._clicks(batch, slates[:, None])[:, 0]
        return (bid + self.run.levers.kappa) * clicks

    def _ads(self, batch: Mapping[str, Any]) -> Ads:
        """Returns CGA's input for a batch."""
        ads = functools.partial(ads_of, levers=self.run.levers)
        return jax.vmap(ads)(self._ranked(batch), batch["bid"])

    def _queues(self, auction: Params) -> Callable[[Mapping[str, Any]], Queues]:
        """Returns a function from a batch to CrossDQN's input, given the trained CGA."""
        config, levers = self.config.cga, self.run.levers

        def one(ranked: Ranked, bid: jax.Array) -> Queues:
            listed, _ = list_ads(auction, config, ranked, bid, levers)
            return queues_of(ranked, bid, levers, listed)

        return lambda batch: jax.vmap(one)(self._ranked(batch), batch["bid"])
