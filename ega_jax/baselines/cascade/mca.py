"""MCA: the multi-stage cascade that one generative model replaces, as one allocation.

TIGER recalls ads, Peri-CR chooses creatives beside HSTU, which ranks, CGA orders the ads that bid,
CrossDQN places them among the organic items. Each stage sees what the one before it let through.
The whole is a `System`, so that pricing, regret and judges are EGA's.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.system import (
    Allocation,
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
from ega_jax.generation.candidates import organic_queue
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.generation.pretraining import CodeTree
from ega_jax.reward.model import Items
from ega_jax.types import Params, Request


@dataclasses.dataclass(frozen=True)
class MCAConfig(SystemConfig):
    """What is compiled into the cascade."""

    tiger: GeneratorConfig
    hstu: HSTUConfig
    peri_cr: PeriCRConfig
    cga: CGAConfig
    cross_dqn: CrossDQNConfig
    num_recalled: int  # Ads that TIGER lets through.


@struct.dataclass
class Upstream:
    """Parameters of the stages before the auction."""

    tiger: Params
    hstu: Params
    peri_cr: Params
    tree: CodeTree | None  # That TIGER's likelihood is normalised over; see `item_nll`.


@struct.dataclass
class Ranked:
    """A request's candidates after recall, creatives and ranking; bids play no part yet."""

    state: jax.Array  # [N, D] candidates in the user's eyes.
    click: jax.Array  # [N] float32 click probability in the first slot.
    creative: jax.Array  # [N] int32, -1 where none.
    is_ad: jax.Array  # [N] bool, an ad that was recalled.
    organic: jax.Array  # [N] int32 organic candidates in upstream order, -1 after the last.


def rank(models: Upstream, config: MCAConfig, items: Items, request: Request) -> Ranked:
    """Runs the stages before the auction on one request.

    Args:
      models: their parameters.
      config: sizes of all stages.
      items: what they see of the items.
      request: without a batch axis; its bids are not read.
    """
    history, item = (request.history_poi, request.history_creative), request.item
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
    organic = organic_queue(there & ~is_ad)
    return Ranked(ranking.state, ranking.click, creative, recalled, organic)


def without(ranked: Ranked, banned: chex.Numeric) -> Ranked:
    """Ranked candidates without the candidate `banned []`; recall is not repeated."""
    is_ad = ranked.is_ad & (jnp.arange(ranked.is_ad.size) != banned)
    order = jnp.argsort(ranked.organic == banned)  # Stable.
    organic = ranked.organic[order]
    organic = jnp.where(organic == banned, -1, organic)
    return dataclasses.replace(ranked, is_ad=is_ad, organic=organic)


def ads_of(ranked: Ranked, bid: jax.Array, levers: Levers) -> Ads:
    """The auction's view of ranked candidates under bids `[N]`: ads that bid the reserve."""
    is_ad = ranked.is_ad & (bid >= levers.reserve)
    return Ads(ranked.state, ranked.click, visible_bids(bid, levers), is_ad)


def list_ads(
    params: Params, config: CGAConfig, ranked: Ranked, bid: jax.Array, levers: Levers
) -> tuple[jax.Array, jax.Array]:
    """The auction's list of ads `[L]` under bids `[N]`, and their log-probabilities `[L]`."""
    return cga.generate(params, config, ads_of(ranked, bid, levers))


def queues_of(ranked: Ranked, bid: jax.Array, levers: Levers, listed: jax.Array) -> Queues:
    """The allocation's view: the auction's list of ads `[L]` beside the organic items."""
    bid = visible_bids(bid, levers)
    return Queues(ranked.state, ranked.click, bid, ranked.is_ad, listed, ranked.organic)


@struct.dataclass
class MCA(System[MCAConfig]):
    """The cascade as a system: all stages, and the reward model that judges its slates."""

    upstream: Upstream
    cga: Params
    cross_dqn: Params

    def encode(self, request: Request) -> PreparedRequest:
        """Runs the stages before the auction."""
        ranked = rank(self.upstream, self.config, self.items, request)
        return PreparedRequest(
            memory=ranked,
            reward_memory=self.encode_for_reward(request),
            item=request.item,
            is_ad=ranked.is_ad,
            creative=ranked.creative,
            quality=ranked.click,
        )

    def allocate(
        self, prepared: PreparedRequest, bid: jax.Array, levers: Levers
    ) -> tuple[Allocation, Menu]:
        """Runs auction and allocation; their one slate is the whole menu."""
        return self._allocate(prepared, bid, levers, -1)

    def allocate_each(
        self,
        prepared: PreparedRequest,
        bid: jax.Array,
        levers: Levers,
        banned: jax.Array | None = None,
    ) -> tuple[Allocation, Menu]:
        """As `allocate`, for each bid vector; ranking is shared."""
        banned = jnp.full(bid.shape[0], -1) if banned is None else banned
        return jax.vmap(lambda b, out: self._allocate(prepared, b, levers, out))(bid, banned)

    def funnel(self, prepared: PreparedRequest, bid: jax.Array, levers: Levers) -> Funnel:
        """The ads that recall keeps, and the auction's list of them."""
        ranked = prepared.memory
        listed, _ = list_ads(self.cga, self.config.cga, ranked, bid, levers)
        return Funnel(recalled=ranked.is_ad, listed=listed)

    def _allocate(
        self, prepared: PreparedRequest, bid: jax.Array, levers: Levers, banned: chex.Numeric
    ) -> tuple[Allocation, Menu]:
        """The slate under one bid vector, without the candidate `banned`."""
        ranked = without(prepared.memory, banned)
        listed, log_prob = list_ads(self.cga, self.config.cga, ranked, bid, levers)
        queues = queues_of(ranked, bid, levers, listed)
        slate = cross_dqn.place(
            self.cross_dqn, self.config.cross_dqn, queues, levers.max_ads, levers.min_gap
        )
        creative = pick(prepared.creative, slate, -1)
        prediction = self.predict(prepared, slate, creative)
        of_ad = jnp.where(slate[:, None] == listed, log_prob, 0.0).sum(-1)
        log_z = jnp.where(pick(prepared.is_ad, slate, False), of_ad, 0.0)
        value = slate_value(pick(bid, slate, 0.0), prediction.click_poi, levers.kappa)
        menu = Menu(
            candidate=slate[None],
            pctr=prediction.click_poi[None],
            value=value[None],
            where=jnp.ones(1, bool),
            log_z=log_z[None],
            states=jnp.zeros((1, slate.size, 0)),
        )
        return allocation_of(prepared, bid, menu, 0, creative, prediction), menu
