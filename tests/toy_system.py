"""A toy system and a toy payment rule, each in one place: what adding one's own takes."""

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.pricing import Rule
from ega_jax.auction.system import (
    Bidders,
    Menu,
    PreparedRequest,
    System,
    SystemConfig,
    allocation_of,
    pick,
    slate_value,
)
from ega_jax.generation.reports import Report
from ega_jax.phases.auction import SystemKind
from ega_jax.systems import UNPRICED


@struct.dataclass
class ToyMemory:
    """The ads of one request."""

    item: jax.Array  # [N] int32 POI ids.
    is_ad: jax.Array  # [N] bool.
    bid: jax.Array  # [N] float32 currency per click.
    quality: jax.Array  # [N] float32 click probability alone in the first slot.


@struct.dataclass
class Toy(System[SystemConfig]):
    """Shows the ads of the highest bid times quality, without creatives."""

    def prepare(self, request, levers):
        """Predicts the clicks of each candidate alone in the first slot."""
        item, is_ad = request.item, request.is_ad & (request.item >= 0)
        prepared = PreparedRequest((), self.encode_for_reward(request), levers)
        alone = item[:, None], jnp.full((item.size, 1), -1), is_ad[:, None]
        quality = self.predict(prepared, *alone).click_poi[:, 0]
        return prepared.replace(memory=ToyMemory(item, is_ad, request.bid, quality))

    def allocate(self, prepared):
        """One slate is the whole menu."""
        return self._ranked(prepared, Report.none())

    def allocate_each(self, prepared, reports):
        """One slate for each report."""
        return jax.vmap(lambda report: self._ranked(prepared, report))(reports)

    def _ranked(self, prepared, report):
        ads, number = prepared.memory, jnp.arange(prepared.memory.item.size)
        bid = jnp.where(number == report.candidate, report.bid, ads.bid)  # Below 0: absent.
        there = ads.is_ad & (bid >= 0)
        score = jnp.where(there, bid * ads.quality, -1.0)
        score, slate = jax.lax.top_k(score, self.config.reward.num_slots)
        slate = jnp.where(score >= 0, slate, -1)
        item, is_ad, bids = pick(ads.item, slate, -1), slate >= 0, pick(bid, slate, 0.0)
        nothing = jnp.full_like(slate, -1)
        prediction = self.predict(prepared, item, nothing, is_ad)
        only = {
            "candidate": slate,
            "item": item,
            "creative": nothing,
            "is_ad": is_ad,
            "bid": bids,
            "reserve": jnp.zeros_like(bids),
            "quality": pick(ads.quality, slate, 0.0),
            "pctr": prediction.click_poi,
            "value": slate_value(bids, prediction.click_poi, prepared.levers.kappa),
            "where": jnp.bool_(True),
            "log_z": jnp.zeros(slate.size),
            "states": jnp.zeros((slate.size, 0)),
        }
        of_ads = jnp.where(there, number, -1), jnp.maximum(bid, 0.0), ads.quality, ads.item
        rivals = Bidders(*of_ads)
        menu = Menu(**jax.tree.map(lambda x: x[None], only), rivals=rivals)
        return allocation_of(menu, 0, nothing, prediction), menu


def train_toy(run) -> Toy:
    """Needs the reward model alone."""
    return Toy(reward=run.reward, items=run.items, config=SystemConfig(run.reward_config))


KIND = SystemKind(train_toy, UNPRICED | {"auction.system": "toy", "auction.rule": "half"})
RULE = Rule("half", lambda slate: 0.5 * slate.bid)
