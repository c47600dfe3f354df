"""Explanation of a slate: for each slot, the quantities behind its allocation and price."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from matplotlib.figure import Figure

from ega_jax.auction.counterfactuals import counterfactuals
from ega_jax.auction.pricing import PricingConfig, prices
from ega_jax.auction.system import Allocation, Levers, PreparedRequest, System
from ega_jax.generation.reports import Report
from ega_jax.types import AnyRequest, Params

_MOST = np.finfo(np.float32).max
BISECTIONS = 20  # The error of the lowest bid is at most a millionth of the bid.


@struct.dataclass
class Explanation:
    """Codes, weights, contributions and prices of the items of one request's slate."""

    items: jax.Array  # [K] int32 POI ids, -1 in empty slots.
    creatives: jax.Array  # [K] int32, -1 without creative.
    is_ad: jax.Array  # [K] bool.
    bid: jax.Array  # [K] float32 currency per click.
    codes: jax.Array  # [K, C] int32 codes of the item.
    logit: jax.Array  # [K, C] float32 the generator's logit of each code.
    token_bid: jax.Array  # [K, C] float32 token bid of each code, currency per click.
    weight: jax.Array  # [K, C] float32 token weight of each code (21).
    log_z: jax.Array  # [K] float32 log allocation probability of the item.
    pctr: jax.Array  # [K] float32 click probability predicted by the reward model.
    contribution: jax.Array  # [K] float32 marginal contribution (31), currency.
    price: dict[str, jax.Array]  # Rule -> [K] float32 currency per click.
    lowest_bid: jax.Array  # [K] float32 lowest bid that keeps the ad in its slot; 0 if organic.

    def to_dict(self) -> list[dict[str, Any]]:
        """One dictionary of plain numbers and lists per filled slot."""
        host = jax.device_get(dataclasses.asdict(self))
        pick = lambda slot: jax.tree.map(lambda x: x[slot].tolist(), host)
        return [{"slot": slot} | pick(slot) for slot in np.flatnonzero(host["items"] >= 0).tolist()]

    def plot(self) -> Figure:
        """Plots each slot's log token weights by code and its price per click by payment rule."""
        slots = self.to_dict()
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        places = np.arange(len(slots))
        bottom = np.zeros(len(slots))
        for layer in range(self.codes.shape[1]):
            weight = np.array([slot["weight"][layer] for slot in slots], np.float32)
            share = np.log(np.where(weight > 0, np.minimum(weight, _MOST), 1.0))
            left.bar(places, share, bottom=bottom, label=f"code {layer + 1}")
            bottom += share
        title = "log weight that bids add"
        if not self.codes.shape[1]:  # A system without codes.
            left.bar(places, [slot["contribution"] for slot in slots], label="contribution")
            title = "value that each item adds"
        left.set(title=title, xlabel="slot", xticks=places)
        for rule, marker in zip(self.price, "ox^svDP*", strict=False):
            right.plot(places, [slot["price"][rule] for slot in slots], marker, label=rule)
        right.plot(places, [slot["bid"] for slot in slots], "k_", ms=18, label="bid")
        right.plot(places, [slot["lowest_bid"] for slot in slots], "r_", ms=18, label="lowest bid")
        right.set(title="price of a click", xlabel="slot", xticks=places)
        for axes in (left, right):
            axes.set_xticklabels([f"{s['items']}{' (ad)' if s['is_ad'] else ''}" for s in slots])
            axes.legend(fontsize=7)
        return figure


@functools.partial(jax.jit, static_argnames="pricing")
def explain(
    system: System,
    networks: dict[str, Params],
    pricing: PricingConfig,
    request: AnyRequest,
    levers: Levers,
) -> Explanation:
    """Explains the slate of one request, without a batch axis.

    Args:
      system: the system that allocates.
      networks: parameters of the payment networks, by head.
      pricing: sizes of the payment networks and of their inputs.
      request: the request.
      levers: run-time settings.

    Returns:
      The explanation. It holds a price for every rule in `pricing.rules`. It leaves out Myerson's
      price, which the evaluation computes from many reports per ad, and the truthful mode, which
      may show another slate.
    """
    prepared = system.prepare(request, levers)
    shown, menu = system.allocate(prepared)
    known, _, _ = counterfactuals(system, pricing.probed, prepared, shown.ads, menu)
    return Explanation(
        items=shown.item,
        creatives=shown.creative,
        is_ad=shown.is_ad,
        bid=shown.bid,
        **vars(system.tokens(prepared, shown)),
        log_z=shown.log_z,
        pctr=shown.prediction.click_poi,
        contribution=system.contributions(prepared, shown),
        price=prices(networks, pricing, levers, shown, menu, known),
        lowest_bid=lowest_bids(system, prepared, shown),
    )


def lowest_bids(system: System, prepared: PreparedRequest, shown: Allocation) -> jax.Array:
    """The lowest bids `[K]` at which the ads keep their slots, by bisection.

    If an ad loses its slot and regains it at a still lower bid, there are several such thresholds;
    the result is one of them.
    """
    slots, ads = jnp.arange(shown.candidate.shape[0]), shown.ads.ad

    def keeps(reports: jax.Array) -> jax.Array:
        again, _ = system.allocate_each(prepared, Report(ads, reports))
        return again.candidate[slots, slots] == shown.candidate

    def halve(step, bounds):
        low, high = bounds
        tried = jnp.where(step == 0, 0.0, (low + high) / 2)  # First 0, at which some keep theirs.
        kept = keeps(tried)
        return jnp.where(kept, low, tried), jnp.where(kept, tried, high)

    _, high = jax.lax.fori_loop(0, BISECTIONS + 1, halve, (jnp.zeros_like(shown.bid), shown.bid))
    return jnp.where(shown.is_ad, high, 0.0)
