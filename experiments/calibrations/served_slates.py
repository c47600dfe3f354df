"""What systems serve: predicted over true clicks, and how much of the log tells of it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ega_jax.data.market.clicks import Truth
from ega_jax.data.market.logger import Logger
from ega_jax.evaluation.off_policy import overlap_by_slots, ratio, slate_chances
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.requests import real_requests, request_of
from ega_jax.training.mesh import fill_devices


def served_slates(runs: Mapping[str, AuctionTraining]) -> dict[str, Any]:
    """Measures the slates that trained systems serve to about `auction.num_served` test sessions.

    Args:
      runs: systems by name, on the log of one market.

    Returns:
      By system: `served_ratio` and its interval from `served_ratio_low` to `served_ratio_high`:
      clicks predicted by the system's own model over true ones; `overlap`: the share of the log's
      sessions that tells of these slates, as effective sample size; `overlap_by_slots`: the same if
      only the first, the first two, ... slots have to be alike.
    """
    each = {name: _of_system(run) for name, run in runs.items()}
    return {
        measure: {name: found[measure] for name, found in each.items()}
        for measure in next(iter(each.values()))
    }


def _of_system(run: AuctionTraining) -> dict[str, Any]:
    folder, books, mechanism = run.pretraining.folder, run.dataset.books, run.mechanism
    assert books is not None, "a market's log has books"
    logger, truth = Logger.load(folder), Truth.load(folder)
    settings = run.settings.auction
    predicted, true, chances = [], [], []
    for batch in fill_devices(run.sessions("test", settings.num_served, settings.batch_size)):
        batch = real_requests(batch)
        slate = jax.tree.map(np.asarray, mechanism.allocate(request_of(batch)))
        shown = slate.items, slate.creatives, slate.is_ad
        known = truth.responses(batch["session"], *shown).click_poi
        predicted.append(slate.pctr.sum(-1))
        true.append(np.asarray(known).sum(-1))
        chances.append(slate_chances(logger, batch, books, slate))
    clicks = ratio(np.concatenate(predicted), np.concatenate(true))
    shares = overlap_by_slots(np.concatenate(chances))
    return {
        "served_ratio": clicks.value,
        "served_ratio_low": clicks.low,
        "served_ratio_high": clicks.high,
        "overlap": shares[-1],
        "overlap_by_slots": shares,
    }
