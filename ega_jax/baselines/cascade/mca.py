"""The baseline MCA: a multi-stage cascade, as one `System`.

A funnel leads from the request's book to a few ranked ads (`upstream`). CGA orders those that bid,
and CrossDQN places them among the organic items. CGA reads the ranked ads, and CrossDQN reads CGA's
list. Pricing, regret and evaluation are the same as for EGA.
"""

import dataclasses
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.system import (
    Allocation,
    Bidders,
    Funnel,
    Levers,
    Menu,
    PreparedRequest,
    System,
    SystemConfig,
    allocation_of,
    pick,
    slate_value,
    visible_bids,
)
from ega_jax.baselines.cascade import cga, cross_dqn
from ega_jax.baselines.cascade.arrangements import Queues
from ega_jax.baselines.cascade.cga import Ads, CGAConfig
from ega_jax.baselines.cascade.cross_dqn import CrossDQNConfig
from ega_jax.baselines.cascade.upstream import Passed, Ranked, Upstream, run_funnel
from ega_jax.generation.reports import Report
from ega_jax.types import AnyRequest, Params


@dataclasses.dataclass(frozen=True)
class MCAConfig(SystemConfig):
    """The static config of the cascade; that of the stages before the auction is in `Upstream`."""

    cga: CGAConfig
    cross_dqn: CrossDQNConfig


def without(ranked: Ranked, banned: chex.Numeric) -> Ranked:
    """Removes the candidate `banned []` from ranked candidates; the funnel is not repeated."""
    is_gone = (ranked.candidate == banned) & (ranked.candidate >= 0)
    organic = jnp.where(pick(is_gone, ranked.organic, False), -1, ranked.organic)
    organic = organic[jnp.argsort(organic < 0, stable=True)]
    return dataclasses.replace(ranked, is_ad=ranked.is_ad & ~is_gone, organic=organic)


def taking_part(ranked: Ranked, bid: jax.Array, reserve: jax.Array) -> Ranked:
    """Removes ads whose bids `[X]` are below their own reserves `[X]`."""
    return dataclasses.replace(ranked, is_ad=ranked.is_ad & (bid >= reserve))


def ads_of(ranked: Ranked, bid: jax.Array, levers: Levers) -> Ads:
    """Returns CGA's input under bids `[X]`; only ads that bid at least the reserve are listed."""
    is_ad = ranked.is_ad & (bid >= levers.reserve)
    return Ads(ranked.state, ranked.click, visible_bids(bid, levers), is_ad)


def list_ads(
    params: Params, config: CGAConfig, ranked: Ranked, bid: jax.Array, levers: Levers
) -> tuple[jax.Array, jax.Array]:
    """Returns CGA's list of ads `[L]` under bids `[X]`, and their log-probabilities `[L]`."""
    return cga.generate(params, config, ads_of(ranked, bid, levers))


def queues_of(ranked: Ranked, bid: jax.Array, levers: Levers, listed: jax.Array) -> Queues:
    """Returns CrossDQN's input: CGA's list of ads `[L]` and the queue of organic items."""
    bid = visible_bids(bid, levers)
    return Queues(ranked.state, ranked.click, bid, ranked.is_ad, listed, ranked.organic)


@struct.dataclass
class MCA(System[MCAConfig]):
    """The cascade as a system: all stages, and the reward model that values its slates."""

    upstream: Upstream
    cga: Params
    cross_dqn: Params

    reads_search_bids: ClassVar[bool] = False
    weighs_clicks: ClassVar[bool] = False  # Its models learn kappa.

    def prepare(self, request: AnyRequest, levers: Levers) -> PreparedRequest:
        """Runs the stages before the auction."""
        return PreparedRequest(
            memory=run_funnel(self.upstream, self.items, request, self.book),
            reward_memory=self.encode_for_reward(request),
            levers=levers,
        )

    def allocate(self, prepared: PreparedRequest) -> tuple[Allocation, Menu]:
        """Runs CGA and CrossDQN; the menu holds their one slate."""
        return self._allocate(prepared, Report.none())

    def allocate_each(self, prepared: PreparedRequest, reports: Report) -> tuple[Allocation, Menu]:
        """Runs `allocate` for each report; the funnel is shared."""
        return jax.vmap(lambda report: self._allocate(prepared, report))(reports)

    def funnel(self, prepared: PreparedRequest) -> Funnel:
        """Returns the ads that recall and ranking keep, and CGA's list of them."""
        passed: Passed = prepared.memory
        ranked, bid = taking_part(passed.ranked, passed.bid, passed.reserve), passed.bid
        listed, _ = list_ads(self.cga, self.config.cga, ranked, bid, prepared.levers)
        return Funnel(
            recalled=passed.recalled,
            ranked=jnp.where(ranked.is_ad, ranked.candidate, -1),
            listed=pick(ranked.candidate, listed, -1),
        )

    def _allocate(self, prepared: PreparedRequest, report: Report) -> tuple[Allocation, Menu]:
        """Allocates a slate under one report."""
        levers, passed = prepared.levers, prepared.memory
        is_own = passed.ranked.is_ad & (passed.ranked.candidate == report.candidate)
        bid = jnp.where(is_own, jnp.maximum(report.bid, 0.0), passed.bid)
        ranked = without(passed.ranked, jnp.where(report.bid < 0, report.candidate, -1))
        ranked = taking_part(ranked, bid, passed.reserve)
        listed, log_prob = list_ads(self.cga, self.config.cga, ranked, bid, levers)
        queues = queues_of(ranked, bid, levers, listed)
        slate = cross_dqn.place(
            self.cross_dqn, self.config.cross_dqn, queues, levers.max_ads, levers.min_gap
        )
        item, creative = pick(ranked.item, slate, -1), pick(ranked.creative, slate, -1)
        is_ad, bids = pick(ranked.is_ad, slate, False), pick(bid, slate, 0.0)
        prediction = self.predict(prepared, item, creative, is_ad)
        of_ad = jnp.where(slate[:, None] == listed[None], log_prob[None], 0.0).sum(-1)
        only = {
            "candidate": pick(ranked.candidate, slate, -1),
            "item": item,
            "creative": creative,
            "is_ad": is_ad,
            "bid": bids,
            "reserve": jnp.where(
                is_ad, jnp.maximum(levers.reserve, pick(passed.reserve, slate, 0.0)), 0.0
            ),
            "quality": pick(ranked.click, slate, 0.0),
            "pctr": prediction.click_poi,
            "value": slate_value(bids, prediction.click_poi, levers.kappa),
            "where": jnp.bool_(True),
            "log_z": jnp.where(is_ad, of_ad, 0.0),
            "states": jnp.zeros((slate.size, 0)),
        }
        ads = jnp.where(ranked.is_ad & (bid >= levers.reserve), ranked.candidate, -1)
        rivals = Bidders(ads, bid, ranked.click, ranked.item)
        menu = Menu(**jax.tree.map(lambda x: x[None], only), rivals=rivals)
        return allocation_of(menu, 0, creative, prediction), menu
