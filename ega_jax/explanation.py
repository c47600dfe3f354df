"""Why a slate is what it is: for each slot, what put it there and what it costs."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from matplotlib.figure import Figure

from ega_jax.auction.contributions import contributions
from ega_jax.auction.counterfactuals import look_elsewhere
from ega_jax.auction.ega import AllocationConfig, Models, candidates_of
from ega_jax.auction.pricing import PricingConfig, prices
from ega_jax.auction.system import Allocation, Levers, Offer, allocate, allocate_each, prepare
from ega_jax.generation.bidding import log_weights
from ega_jax.generation.generator import codes_of
from ega_jax.generation.slate_policy import path_logits, slate_path
from ega_jax.types import Params, Request

_MOST = np.finfo(np.float32).max
BISECTIONS = 20  # The lowest bid is known to a millionth of the bid.


@struct.dataclass
class Explanation:
    """What put each item of one request's slate into its slot."""

    items: jax.Array  # [K] int32 POI ids, -1 where the slot is empty.
    creatives: jax.Array  # [K] int32, -1 where none.
    is_ad: jax.Array  # [K] bool.
    bid: jax.Array  # [K] float32 currency per click.
    codes: jax.Array  # [K, C] int32 codes of the item.
    logit: jax.Array  # [K, C] float32 the generator's logit of each code.
    token_bid: jax.Array  # [K, C] float32 currency per click that each code carries.
    weight: jax.Array  # [K, C] float32 the code's weight (21).
    log_z: jax.Array  # [K] float32 log allocation probability of the item.
    pctr: jax.Array  # [K] float32 the reward model's click probability.
    contribution: jax.Array  # [K] float32 marginal contribution (31), currency.
    price: dict[str, jax.Array]  # Rule -> [K] float32 currency per click.
    lowest_bid: jax.Array  # [K] float32 least bid that keeps the ad in its slot; 0 if organic.

    def to_dict(self) -> list[dict[str, Any]]:
        """One dictionary per filled slot, of plain numbers and lists."""
        host = jax.device_get(dataclasses.asdict(self))
        pick = lambda slot: jax.tree.map(lambda x: x[slot].tolist(), host)
        return [{"slot": slot} | pick(slot) for slot in np.flatnonzero(host["items"] >= 0).tolist()]

    def plot(self) -> Figure:
        """Draws, by slot, what each code weighed and what a click costs under each rule."""
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
        left.set(title="log weight that bids add", xlabel="slot", xticks=places)
        for rule, marker in zip(self.price, "ox^svDP*", strict=False):
            right.plot(places, [slot["price"][rule] for slot in slots], marker, label=rule)
        right.plot(places, [slot["bid"] for slot in slots], "k_", ms=18, label="bid")
        right.plot(places, [slot["lowest_bid"] for slot in slots], "r_", ms=18, label="lowest bid")
        right.set(title="price of a click", xlabel="slot", xticks=places)
        for axes in (left, right):
            axes.set_xticklabels([f"{s['items']}{' (ad)' if s['is_ad'] else ''}" for s in slots])
            axes.legend(fontsize=7)
        return figure


@functools.partial(jax.jit, static_argnames=("config", "pricing"))
def explain(
    models: Models,
    networks: dict[str, Params],
    config: AllocationConfig,
    pricing: PricingConfig,
    levers: Levers,
    request: Request,
) -> Explanation:
    """Explains the slate of one request, without a batch axis.

    Args:
      models: generator, reward model, items.
      networks: the payment network's parameters by head.
      config: sizes of the allocation.
      pricing: sizes of the payment network and of what it sees.
      levers: run-time settings.
      request: the request.

    Returns:
      The explanation. Its prices are those of every rule that may be charged for this slate; the
      judge's oracles, Myerson's, try all reports of an ad, and the truthful mode shows another.
    """
    offer, bid = prepare(models, config, request), request.bid
    shown, menu = allocate(models, config, offer, bid, levers)
    elsewhere, _, _ = look_elsewhere(
        models, config, pricing.probes, levers, offer, bid, shown.candidate, menu
    )
    every = prices(networks, pricing, levers, offer, bid, shown, menu, elsewhere)
    offers = jax.tree.map(lambda x: x[None], offer)
    _, contribution = contributions(models, config, offers, bid[None], levers)
    return Explanation(
        items=shown.item,
        creatives=shown.creative,
        is_ad=shown.is_ad,
        bid=shown.bid,
        **_tokens(models, config, levers, offer, bid, shown),
        log_z=shown.log_z,
        pctr=shown.prediction.click_poi,
        contribution=contribution[0],
        price=dict(zip(pricing.rules, every, strict=True)),
        lowest_bid=lowest_bids(models, config, levers, offer, bid, shown),
    )


def _tokens(models, config, levers, offer: Offer, bid, shown: Allocation) -> dict[str, jax.Array]:
    """Codes of the slate's items with their logits, bids and weights, each `[K, C]`."""
    codes = codes_of(models.items.catalogue.poi_codes, offer.item)
    candidates = candidates_of(config, levers)(codes, offer.is_ad, bid, offer.item >= 0)
    path = slate_path(candidates, shown.candidate)
    logits = path_logits(models.generator, config.generator, offer.memory, path)
    token_bid = jnp.max(path.options.bid, axis=-1, where=path.is_taken, initial=0.0)
    return {
        "codes": path.codes,
        "logit": jnp.take_along_axis(logits, path.codes[..., None], axis=-1)[..., 0],
        "token_bid": token_bid,
        "weight": jnp.exp(log_weights(token_bid, levers.alpha, levers.beta)),
    }


def lowest_bids(
    models: Models,
    config: AllocationConfig,
    levers: Levers,
    offer: Offer,
    bid: jax.Array,
    shown: Allocation,
) -> jax.Array:
    """The least bids `[K]` with which the ads would still stand in their slots, by bisection.

    Where an ad could lose its slot and win it back further down, one of these bids is found.
    """
    slots = jnp.arange(shown.candidate.shape[0])

    def keeps(reports: jax.Array) -> jax.Array:
        each = jax.vmap(lambda ad, report: bid.at[ad].set(report))(shown.candidate, reports)
        again, _ = allocate_each(models, config, offer, each, levers)
        return again.candidate[slots, slots] == shown.candidate

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        kept = keeps(middle)
        return jnp.where(kept, low, middle), jnp.where(kept, middle, high)

    free = keeps(jnp.zeros_like(shown.bid))
    _, high = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(shown.bid), shown.bid))
    return jnp.where(shown.is_ad & ~free, high, 0.0)
