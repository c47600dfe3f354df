"""A toy system and a toy payment rule, each in one place: what adding one's own takes."""

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.pricing import Rule
from ega_jax.auction.system import (
    Menu,
    PreparedRequest,
    System,
    SystemConfig,
    allocation_of,
    pick,
    slate_value,
)
from ega_jax.phases.auction import SystemKind
from ega_jax.systems import UNPRICED


@struct.dataclass
class Toy(System[SystemConfig]):
    """Shows the ads of the highest bid times quality, without creatives."""

    def encode(self, request):
        """Predicts each candidate alone in the first slot."""
        memory, alone = self.encode_for_reward(request), jnp.arange(request.item.size)[:, None]
        nothing = jnp.full(request.item.shape, -1)
        prepared = PreparedRequest(
            memory=(),
            reward_memory=memory,
            item=request.item,
            is_ad=request.is_ad & (request.item >= 0),
            creative=nothing,
            quality=jnp.zeros(request.item.size),
        )
        clicks = self.predict(prepared, alone, nothing[:, None]).click_poi[:, 0]
        return prepared.replace(quality=jnp.where(prepared.is_ad, clicks, 0.0))

    def allocate(self, prepared, bid, levers):
        """One slate is the whole menu."""
        return self._ranked(prepared, bid, levers, -1)

    def allocate_each(self, prepared, bid, levers, banned=None):
        """One slate for each bid vector."""
        banned = jnp.full(bid.shape[0], -1) if banned is None else banned
        return jax.vmap(lambda b, out: self._ranked(prepared, b, levers, out))(bid, banned)

    def _ranked(self, prepared, bid, levers, banned):
        where = prepared.is_ad & (jnp.arange(bid.size) != banned)
        score, slate = jax.lax.top_k(
            jnp.where(where, bid * prepared.quality, -1.0), self.config.reward.num_slots
        )
        slate = jnp.where(score >= 0, slate, -1)
        creative = pick(prepared.creative, slate, -1)
        prediction = self.predict(prepared, slate, creative)
        value = slate_value(pick(bid, slate, 0.0), prediction.click_poi, levers.kappa)
        menu = Menu(
            candidate=slate[None],
            pctr=prediction.click_poi[None],
            value=value[None],
            where=jnp.ones(1, bool),
            log_z=jnp.zeros((1, slate.size)),
            states=jnp.zeros((1, slate.size, 0)),
        )
        return allocation_of(prepared, bid, menu, 0, creative, prediction), menu


def train_toy(run) -> Toy:
    """Needs the reward model alone."""
    return Toy(reward=run.reward, items=run.items, config=SystemConfig(run.reward_config))


KIND = SystemKind(train_toy, UNPRICED | {"auction.system": "toy", "auction.rule": "half"})
RULE = Rule("half", lambda slate: 0.5 * slate.bid)
