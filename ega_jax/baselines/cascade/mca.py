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
      request: one request without a batch axis; its bids are not read.
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
class MCA(System[MCAConfig]):
    """The cascade as a system: all stages, and the reward model that values its slates."""

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
        """Runs CGA and CrossDQN; the menu holds their one slate."""
        return self._allocate(prepared, bid, levers, -1)

    def allocate_each(
        self,
        prepared: PreparedRequest,
        bid: jax.Array,
        levers: Levers,
        banned: jax.Array | None = None,
    ) -> tuple[Allocation, Menu]:
        """Runs `allocate` for each bid vector; ranking is shared."""
        banned = jnp.full(bid.shape[0], -1) if banned is None else banned
        return jax.vmap(lambda b, out: self._allocate(prepared, b, levers, out))(bid, banned)

    def funnel(self, prepared: PreparedRequest, bid: jax.Array, levers: Levers) -> Funnel:
        """Returns the recalled ads and CGA's list of them."""
        ranked = prepared.memory
        listed, _ = list_ads(self.cga, self.config.cga, ranked, bid, levers)
        return Funnel(recalled=ranked.is_ad, listed=listed)

    def _allocate(
        self, prepared: PreparedRequest, bid: jax.Array, levers: Levers, banned: chex.Numeric
    ) -> tuple[Allocation, Menu]:
        """Allocates a slate under one bid vector without the candidate `banned`; -1: none."""
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
