"""The systems that are compared, as trained auctions: EGA, GR and MCA.

Each gives the pieces in which it differs from EGA; tables of reports, payment network, mechanism
and judges are the same for all.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ega_jax.auction.ega import candidates_of
from ega_jax.auction.system import pick_each
from ega_jax.baselines.cascade.arrangements import Queues
from ega_jax.baselines.cascade.cga import Ads, CGAConfig
from ega_jax.baselines.cascade.cross_dqn import CrossDQNConfig
from ega_jax.baselines.cascade.mca import (
    CascadeConfig,
    CascadeModels,
    Ranked,
    Upstream,
    ads_of,
    cga,
    cross_dqn,
    list_ads,
    queues_of,
    rank,
)
from ega_jax.baselines.cascade.stages import Stages
from ega_jax.baselines.one_rec import OneRecConfig, OneRecModels, pairs_of, preference_loss
from ega_jax.mechanism import Mechanism
from ega_jax.phases.auction import AuctionTraining, request_of
from ega_jax.phases.ega import EGA
from ega_jax.phases.logged import sizes_of
from ega_jax.phases.pretraining import Pretraining
from ega_jax.reward import model as reward_model
from ega_jax.types import Params


class GR(EGA):
    """OneRec with Peri-CR's creatives; its own payment rule is GSP."""

    @functools.cached_property
    def stages(self) -> Stages:
        """Of the cascade, Peri-CR is shared."""
        return Stages(self)

    @property
    def allocation_config(self) -> OneRecConfig:
        """What is compiled into the allocation."""
        shared = vars(super().allocation_config)
        return OneRecConfig(**shared, peri_cr=self.stages.peri_cr_config)

    def models_with(self, generator: Params) -> OneRecModels:
        """What slates are found with when OneRec is this one."""
        shared = vars(super().models_with(generator))
        return OneRecModels(**shared, peri_cr=self.stages.peri_cr)

    def alignment_loss(self, pretrained: Params) -> Callable:
        """Direct preference optimisation on the current policy's own beams."""
        config, levers = self.allocation_config, self.levers
        return preference_loss(
            config.generator,
            self.config["alignment"]["part"],
            self.config["one_rec"]["strength"],
            self.items.catalogue,
            pairs_of(self.models_with(pretrained), config, levers),
            candidates_of(config, levers),
        )


class MCA(AuctionTraining):
    """The cascade: TIGER, HSTU beside Peri-CR, CGA, CrossDQN, and CGA's payment network."""

    @functools.cached_property
    def stages(self) -> Stages:
        """The stages that learn from logged feedback alone."""
        return Stages(self)

    @property
    def allocation_config(self) -> CascadeConfig:
        """What is compiled into the allocation."""
        settings = self.config["cascade"]
        slots = self.dataset.summary.num_slots
        return CascadeConfig(
            tiger=self.stages.tiger_config,
            hstu=self.stages.hstu_config,
            peri_cr=self.stages.peri_cr_config,
            cga=sizes_of(CGAConfig, settings["cga"], num_ads=slots),
            cross_dqn=sizes_of(CrossDQNConfig, settings["cross_dqn"], num_slots=slots),
            reward=self.reward_config,
            num_recalled=settings["num_recalled"],
        )

    @property
    def models(self) -> CascadeModels:
        """All stages, the reward model, items."""
        return CascadeModels(
            reward=self.reward,
            items=self.items,
            upstream=self.upstream,
            cga=self.cga,
            cross_dqn=self.cross_dqn,
        )

    @property
    def upstream(self) -> Upstream:
        """The stages before the auction."""
        tree = self.pretraining.loss_tree
        return Upstream(self.stages.tiger, self.stages.hstu, self.stages.peri_cr, tree)

    @functools.cached_property
    def cga(self) -> Params:
        """The auction's parameters, trained against the reward model as its evaluator."""
        config = self.allocation_config
        phase = cga.cga_phase(
            self.dataset,
            config.cga,
            self.config["cascade"]["cga"],
            self.config["seed"],
            history_length=config.tiger.history_length,
            state_width=config.hstu.width,
            view=self._ads,
            judge=self._judge,
            kappa=self.levers.kappa,
        )
        return self.train_phase(phase, self.system)

    @functools.cached_property
    def cross_dqn(self) -> Params:
        """The placement's parameters, trained behind the auction's."""
        config, auction, levers = self.allocation_config, self.cga, self.levers
        clicks = self._judge

        def view(batch: Mapping[str, Any]) -> Queues:
            def one(ranked: Ranked, bid: jax.Array) -> Queues:
                listed, _ = list_ads(auction, config.cga, ranked, bid, levers)
                return queues_of(ranked, bid, listed, levers)

            return jax.vmap(one)(self._ranked(batch), batch["bid"])

        def judge(batch: Mapping[str, Any], slates: jax.Array) -> jax.Array:
            bid = pick_each(batch["bid"], slates, 0.0)
            return (bid + levers.kappa) * clicks(batch, slates[:, None])[:, 0]

        phase = cross_dqn.cross_dqn_phase(
            self.dataset,
            config.cross_dqn,
            self.config["cascade"]["cross_dqn"],
            self.config["seed"],
            history_length=config.tiger.history_length,
            state_width=config.hstu.width,
            view=view,
            judge=judge,
            max_ads=int(levers.max_ads),
            min_gap=int(levers.min_gap),
        )
        return self.train_phase(phase, self.system)

    @functools.cached_property
    def _ranked(self) -> Callable[[Mapping[str, Any]], Ranked]:
        """Ranks the candidates of batches, by stages that are trained first."""
        config, upstream, items = self.allocation_config, self.upstream, self.items
        each = jax.vmap(lambda request: rank(upstream, config, items, request))
        return lambda batch: each(request_of(batch))

    @functools.cached_property
    def _judge(self) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
        """Clicks `[B, R, L]` of candidates in lists `[B, R, L]` by the reward model."""
        params, config, items, ranked = self.reward, self.reward_config, self.items, self._ranked

        def one(history_poi, history_creative, item, *shown):
            memory = reward_model.encode(params, config, items, history_poi, history_creative, item)
            return reward_model.predict(params, config, items, memory, *shown).click_poi

        def judge(batch: Mapping[str, Any], lists: jax.Array) -> jax.Array:
            shown = (
                pick_each(batch["item"], lists, -1),
                pick_each(ranked(batch).creative, lists, -1),
                pick_each(batch["is_ad"], lists, False),
            )
            request = batch["history_poi"], batch["history_creative"], batch["item"]
            return jax.vmap(one)(*request, *shown)

        return judge

    def _ads(self, batch: Mapping[str, Any]) -> Ads:
        """What the auction sees of a batch."""
        ads = functools.partial(ads_of, levers=self.levers)
        return jax.vmap(ads)(self._ranked(batch), batch["bid"])


def mechanism_of(run: AuctionTraining) -> Mechanism:
    """The mechanism of a system, whose phases are trained first as far as they are not."""
    return Mechanism(
        models=run.models,
        networks=run.networks,
        config=run.allocation_config,
        pricing=run.pricing_config,
        levers=run.levers,
        rule=run.config["auction"]["rule"],
    )


KINDS = {"ega": EGA, "gr": GR, "mca": MCA}


def training_of(pretraining: Pretraining, system: Path) -> AuctionTraining:
    """The training of the kind of system that a config names.

    Args:
      pretraining: the first half, finished.
      system: folder of this system, below the workdir.

    Raises:
      ValueError: there is no such kind, or no such payment rule.
    """
    kind, rule = (pretraining.config["auction"][name] for name in ("system", "rule"))
    if kind not in KINDS:
        raise ValueError(f"auction.system {kind!r} is not one of {', '.join(KINDS)}")
    run = KINDS[kind](pretraining, system)
    _ = run.allocation_config  # Sizes that do not fit are refused before anything is trained.
    if rule not in (rules := run.pricing_config.rules):
        raise ValueError(f"auction.rule {rule!r} is not one of {', '.join(rules)}")
    return run
