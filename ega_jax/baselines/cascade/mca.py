"""The baseline MCA: a multi-stage cascade, as one `System`.

TIGER recalls ads, HSTU ranks candidates, Peri-CR chooses creatives in parallel to HSTU, CGA orders
the ads that bid, and CrossDQN places them among the organic items. CGA reads the recalled ads, and
CrossDQN reads CGA's list. Pricing, regret and evaluation are the same as for EGA.
"""

import dataclasses

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
from ega_jax.baselines.cascade import cga, cross_dqn, hstu, peri_cr, tiger
from ega_jax.baselines.cascade.arrangements import Queues
from ega_jax.baselines.cascade.cga import Ads, CGAConfig
from ega_jax.baselines.cascade.cross_dqn import CrossDQNConfig
from ega_jax.baselines.cascade.hstu import HSTUConfig
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig
from ega_jax.errors import UserError
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.generation.organic_queue import listed_organic
from ega_jax.generation.pretraining import CodeTree
from ega_jax.generation.reports import Report
from ega_jax.reward.model import Items
from ega_jax.types import AnyRequest, Params, Request, repeats_an_ad


@dataclasses.dataclass(frozen=True)
class MCAConfig(SystemConfig):
    """The static config of the cascade."""

    tiger: GeneratorConfig
    hstu: HSTUConfig
    peri_cr: PeriCRConfig
    cga: CGAConfig
    cross_dqn: CrossDQNConfig
    num_recalled: int  # Number of ads that TIGER recalls.


@struct.dataclass
class Upstream:
    """Parameters of the stages before the auction."""

    tiger: Params
    hstu: Params
    peri_cr: Params
    tree: CodeTree | None  # The codes over which TIGER normalises; see `item_nll`.


@struct.dataclass
class Ranked:
    """A request's candidates after recall, creatives and ranking; independent of bids."""

    state: jax.Array  # [N, D] user-dependent states of the candidates, from HSTU.
    click: jax.Array  # [N] float32 click probability in the first slot.
    creative: jax.Array  # [N] int32, -1 where none.
    is_ad: jax.Array  # [N] bool, whether the candidate is a recalled ad.
    organic: jax.Array  # [N] int32 organic candidates in upstream order, -1 after the last.


def rank(models: Upstream, config: MCAConfig, items: Items, request: Request) -> Ranked:
    """Runs the stages before the auction on one request.

    Args:
      models: the parameters of these stages.
      config: the configs of all stages.
      items: the item features.
      request: one request without a batch axis; its bids are not read. Organic candidates whose
        POI is also an ad are dropped.
    """
    history = request.history_poi, request.history_creative
    repeated = repeats_an_ad(request.item, request.is_ad)
    item = jnp.where(repeated, -1, request.item)
    creative = peri_cr.choose(models.peri_cr, config.peri_cr, items, *history, item)
    first = jnp.zeros_like(item)
    ranking = hstu.rank(
        models.hstu, config.hstu, items, *history, item, creative, request.is_ad, first
    )
    likely = tiger.item_log_probs(
        models.tiger, config.tiger, items.catalogue, *history, item, models.tree
    )
    is_ad, there = request.is_ad, item >= 0
    recalled = tiger.recall(likely, is_ad & there, config.num_recalled)
    organic, _ = listed_organic(item, there & ~is_ad)
    return Ranked(ranking.state, ranking.click, creative, recalled, organic)


def without(ranked: Ranked, banned: chex.Numeric) -> Ranked:
    """Removes the candidate `banned []` from ranked candidates; recall is not repeated."""
    is_ad = ranked.is_ad & (jnp.arange(ranked.is_ad.size) != banned)
    order = jnp.argsort(ranked.organic == banned)  # Stable.
    organic = ranked.organic[order]
    organic = jnp.where(organic == banned, -1, organic)
    return dataclasses.replace(ranked, is_ad=is_ad, organic=organic)


def ads_of(ranked: Ranked, bid: jax.Array, levers: Levers) -> Ads:
    """Returns CGA's input under bids `[N]`; only ads that bid at least the reserve are listed."""
    is_ad = ranked.is_ad & (bid >= levers.reserve)
    return Ads(ranked.state, ranked.click, visible_bids(bid, levers), is_ad)


def list_ads(
    params: Params, config: CGAConfig, ranked: Ranked, bid: jax.Array, levers: Levers
) -> tuple[jax.Array, jax.Array]:
    """Returns CGA's list of ads `[L]` under bids `[N]`, and their log-probabilities `[L]`."""
    return cga.generate(params, config, ads_of(ranked, bid, levers))


def queues_of(ranked: Ranked, bid: jax.Array, levers: Levers, listed: jax.Array) -> Queues:
    """Returns CrossDQN's input: CGA's list of ads `[L]` and the queue of organic items."""
    bid = visible_bids(bid, levers)
    return Queues(ranked.state, ranked.click, bid, ranked.is_ad, listed, ranked.organic)


@struct.dataclass
class MCAMemory:
    """One request after the stages before the auction, with its bids."""

    ranked: Ranked
    item: jax.Array  # [N] int32 POI ids, -1 padding.
    bid: jax.Array  # [N] float32 currency per click, 0 for organic items.


@struct.dataclass
class MCA(System[MCAConfig]):
    """The cascade as a system: all stages, and the reward model that values its slates."""

    upstream: Upstream
    cga: Params
    cross_dqn: Params

    def prepare(self, request: AnyRequest, levers: Levers) -> PreparedRequest:
        """Runs the stages before the auction.

        Raises:
          UserError: the request names a book; the stages read a request's own list.
        """
        if not isinstance(request, Request):
            raise UserError("the cascade (mca) reads a request's own list of ads, not a book")
        return PreparedRequest(
            memory=MCAMemory(
                ranked=rank(self.upstream, self.config, self.items, request),
                item=request.item,
                bid=request.bid,
            ),
            reward_memory=self.encode_for_reward(request),
            levers=levers,
        )

    def allocate(self, prepared: PreparedRequest) -> tuple[Allocation, Menu]:
        """Runs CGA and CrossDQN; the menu holds their one slate."""
        return self._allocate(prepared, Report.none())

    def allocate_each(self, prepared: PreparedRequest, reports: Report) -> tuple[Allocation, Menu]:
        """Runs `allocate` for each report; ranking is shared."""
        return jax.vmap(lambda report: self._allocate(prepared, report))(reports)

    def funnel(self, prepared: PreparedRequest) -> Funnel:
        """Returns the recalled ads and CGA's list of them."""
        ranked, bid = prepared.memory.ranked, prepared.memory.bid
        listed, _ = list_ads(self.cga, self.config.cga, ranked, bid, prepared.levers)
        return Funnel(recalled=ranked.is_ad, listed=listed)

    def _allocate(self, prepared: PreparedRequest, report: Report) -> tuple[Allocation, Menu]:
        """Allocates a slate under one report."""
        levers, memory = prepared.levers, prepared.memory
        number = jnp.arange(memory.item.size)
        bid = jnp.where(number == report.candidate, jnp.maximum(report.bid, 0.0), memory.bid)
        ranked = without(memory.ranked, jnp.where(report.bid < 0, report.candidate, -1))
        listed, log_prob = list_ads(self.cga, self.config.cga, ranked, bid, levers)
        queues = queues_of(ranked, bid, levers, listed)
        slate = cross_dqn.place(
            self.cross_dqn, self.config.cross_dqn, queues, levers.max_ads, levers.min_gap
        )
        item, creative = pick(memory.item, slate, -1), pick(ranked.creative, slate, -1)
        is_ad, bids = pick(ranked.is_ad, slate, False), pick(bid, slate, 0.0)
        prediction = self.predict(prepared, item, creative, is_ad)
        of_ad = jnp.where(slate[:, None] == listed[None], log_prob[None], 0.0).sum(-1)
        only = {
            "candidate": slate,
            "item": item,
            "creative": creative,
            "is_ad": is_ad,
            "bid": bids,
            "quality": pick(ranked.click, slate, 0.0),
            "pctr": prediction.click_poi,
            "value": slate_value(bids, prediction.click_poi, levers.kappa),
            "where": jnp.bool_(True),
            "log_z": jnp.where(is_ad, of_ad, 0.0),
            "states": jnp.zeros((slate.size, 0)),
        }
        rivals = Bidders(jnp.where(ranked.is_ad, number, -1), bid, ranked.click)
        menu = Menu(**jax.tree.map(lambda x: x[None], only), rivals=rivals)
        return allocation_of(menu, 0, creative, prediction), menu
