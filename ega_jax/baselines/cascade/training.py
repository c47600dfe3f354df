"""Training the cascade: TIGER, pre-ranker, HSTU and Peri-CR, then CGA, then CrossDQN."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ega_jax.auction.system import pick_each
from ega_jax.baselines.cascade import cga, cross_dqn
from ega_jax.baselines.cascade.arrangements import Queues
from ega_jax.baselines.cascade.cga import Ads, CGAConfig, ListJudge
from ega_jax.baselines.cascade.cross_dqn import CrossDQNConfig, CrossDQNSettings, SlateJudge
from ega_jax.baselines.cascade.mca import MCA, MCAConfig, ads_of, list_ads, queues_of
from ega_jax.baselines.cascade.stages import Stages
from ega_jax.baselines.cascade.two_tower import poi_table
from ega_jax.baselines.cascade.upstream import Passed, Upstream, UpstreamConfig, run_funnel
from ega_jax.baselines.settings import check_stages, whole
from ega_jax.errors import UserError
from ega_jax.generation.network import NetworkSettings
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.requests import request_of
from ega_jax.phases.settings import PhaseSettings
from ega_jax.reward import model as reward_model
from ega_jax.setting import part_of
from ega_jax.types import Params, organic_pois


def train_mca(run: AuctionTraining) -> MCA:
    """Trains all stages of the cascade and returns it."""
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
        """The trained cascade with the reward model, the items and the books of the log."""
        return MCA(
            reward=self.run.reward,
            items=self.run.items,
            book=self.stages.book,
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
        """The configs of the auction; sizes that do not fit raise an error before any training."""
        settings = whole(self.run.settings).cascade
        slots = self.run.dataset.summary.num_slots
        return MCAConfig(
            cga=CGAConfig(**part_of(settings.cga, NetworkSettings), num_ads=slots),
            cross_dqn=CrossDQNConfig(
                **part_of(settings.cross_dqn, CrossDQNSettings), num_slots=slots
            ),
            reward=self.run.reward_config,
        )

    @functools.cached_property
    def upstream(self) -> Upstream:
        """The stages before the auction."""
        stages = self.stages
        config = UpstreamConfig(
            tiger=stages.tiger_config,
            two_tower=stages.two_tower_config,
            hstu=stages.hstu_config,
            peri_cr=stages.peri_cr_config,
            funnel=whole(self.run.settings).cascade.funnel,
        )
        return Upstream(
            tiger=stages.tiger,
            two_tower=stages.two_tower,
            poi_table=poi_table(stages.two_tower, config.two_tower, self.run.items),
            hstu=stages.hstu,
            peri_cr=stages.peri_cr,
            config=config,
        )

    @functools.cached_property
    def cga(self) -> Params:
        """CGA's parameters, trained with the reward model as evaluator."""
        _ = self.run.reward  # Before the losses, which read it, are traced.
        phase = cga.cga_phase(
            self.run.dataset,
            self.config.cga,
            whole(self.run.settings).cascade.cga,
            self.run.settings.seed,
            history_length=self.stages.hstu_config.history_length,
            state_width=self.stages.hstu_config.width,
            view=self._ads,
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
            history_length=self.stages.hstu_config.history_length,
            state_width=self.stages.hstu_config.width,
            view=self._queues(self.cga),
            max_ads=int(levers.max_ads),
            min_gap=int(levers.min_gap),
        )
        return self.run.train_phase(phase)

    @functools.cached_property
    def _passed(self) -> Callable[[Mapping[str, Any]], Passed]:
        """A function that runs the trained funnel on the requests of a batch."""
        one = functools.partial(run_funnel, self.upstream, self.run.items, forest=self.stages.book)
        return lambda batch: jax.vmap(one)(request_of(batch))

    def _clicks(self, batch: Mapping[str, Any], passed: Passed, lists: jax.Array) -> jax.Array:
        """The reward model's click probabilities `[B, R, L]` of candidates in lists `[B, R, L]`."""
        run, ranked = self.run, passed.ranked
        model = run.reward, run.reward_config, run.items

        def one(history_poi, history_creative, organic, context, *shown):
            memory = reward_model.encode(*model, history_poi, history_creative, organic, context)
            return reward_model.predict(*model, memory, *shown).click_poi

        history = batch["history_poi"], batch["history_creative"]
        request = *history, organic_pois(batch), batch.get("context")
        shown = (
            pick_each(ranked.item, lists, -1),
            pick_each(ranked.creative, lists, -1),
            pick_each(ranked.is_ad, lists, False),
        )
        return jax.vmap(one)(*request, *shown)

    def _ads(self, batch: Mapping[str, Any]) -> tuple[Ads, ListJudge]:
        """Returns CGA's input for a batch, and the reward model as its evaluator."""
        passed = self._passed(batch)
        ads = jax.vmap(functools.partial(ads_of, levers=self.run.levers))
        return ads(passed.ranked, passed.bid), functools.partial(self._clicks, batch, passed)

    def _queues(self, auction: Params) -> Callable[[Mapping[str, Any]], tuple[Queues, SlateJudge]]:
        """Returns a function from a batch to CrossDQN's input and rewards, given the trained CGA.

        The reward of a slot is its expected currency.
        """
        config, levers = self.config.cga, self.run.levers

        def one(passed: Passed) -> Queues:
            listed, _ = list_ads(auction, config, passed.ranked, passed.bid, levers)
            return queues_of(passed.ranked, passed.bid, levers, listed)

        def view(batch: Mapping[str, Any]) -> tuple[Queues, SlateJudge]:
            passed = self._passed(batch)

            def values(slates: jax.Array) -> jax.Array:
                bid = pick_each(passed.bid, slates, 0.0)
                return (bid + levers.kappa) * self._clicks(batch, passed, slates[:, None])[:, 0]

            return jax.vmap(one)(passed), values

        return view
