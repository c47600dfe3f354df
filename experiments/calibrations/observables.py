"""What history and context tell of the true utility, and what recall loses."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ega_jax.data.market.clicks import Truth
from ega_jax.evaluation.observability import (
    VIEWS,
    Ads,
    ads_of,
    linear_scores,
    network_r2,
    value_kept,
)
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.requests import real_rows
from ega_jax.phases.reward import standardise

FITTED, DRAWN = 2048, 24  # Sessions to fit models to, and ads of each.
JUDGED = 1024  # Sessions whose whole books are ranked.
AT_ONCE = 128  # Sessions whose whole books are in memory.
SHARES = (0.05, 0.1, 0.2, 0.5)  # Of a book that recall keeps.


def observables(run: AuctionTraining) -> dict[str, Any]:
    """Fits models of the true utility of ads to observables.

    Returns:
      `recall_value` by share of the book: the value kept by the better linear recall, that of
      `both` views; `recall_value_VIEW`: by one view. `utility_r2_VIEW`: share of the variance of
      the true utility, over all ads of the books, that a neural network explains.
    """
    fitted, other = (_ads(run, split, FITTED, DRAWN) for split in ("pretrain", "test"))
    report: dict[str, Any] = {
        f"utility_r2_{view}": network_r2(fitted, view, other) for view in VIEWS
    }
    shown = run.dataset.summary.max_ads
    for view in VIEWS:
        kept = [
            (value_kept(linear_scores(fitted, view, ads), ads, SHARES, shown), len(ads.value))
            for ads in _parts(run, "test", JUDGED, None, AT_ONCE)
        ]
        weight = [number for _, number in kept]
        report[f"recall_value_{view}"] = {
            share: float(np.average([found[share] for found, _ in kept], weights=weight))
            for share in kept[0][0]
        }
    return report | {"recall_value": report["recall_value_both"]}


def _ads(run: AuctionTraining, split: str, number: int, drawn: int | None) -> Ads:
    return next(iter(_parts(run, split, number, drawn, number)))


def _parts(
    run: AuctionTraining, split: str, number: int, drawn: int | None, at_once: int
) -> Iterator[Ads]:
    """Yields the ads of some sessions of a split."""
    dataset, folder = run.dataset, run.pretraining.folder
    assert dataset.books is not None, "a market's log has books"
    embedding = standardise(dataset.item_embedding)
    first = np.searchsorted(dataset.creative_poi, np.arange(len(embedding)))
    for batch in run.sessions(split, number, at_once):
        real = real_rows(batch)
        kept = {name: np.asarray(x)[real] for name, x in batch.items()}
        yield ads_of(kept, dataset.books, Truth.load(folder), embedding, first, drawn)
