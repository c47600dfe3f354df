"""Serving logged sessions under given levers: RPM and click rates (paper fig. 5)."""

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from ega_jax.data.market.clicks import Truth
from ega_jax.mechanism import Mechanism
from ega_jax.phases.auction import real_rows, request_of
from ega_jax.training.mesh import fill_devices
from ega_jax.types import Slate


def served(
    mechanism: Mechanism,
    batches: Iterable[Mapping[str, np.ndarray]],
    truth: Truth | None,
    rule: str | None = None,
    **levers: float,
) -> dict[str, dict[str, float]]:
    """Serves sessions, whose bids are the true values, and measures revenue and clicks.

    Args:
      mechanism: the mechanism to measure.
      batches: batches with the fields of `Request` and `session`; blank rows are skipped.
      truth: the log's true click probabilities, `None` if unknown.
      rule: the payment rule; default: the mechanism's.
      **levers: levers that replace the mechanism's.

    Returns:
      Metrics by `model` and, with a truth, by `truth`: `rpm` (currency per 1000 impressions),
      `bid_rpm` (the same with bids instead of prices), and `ctr_poi`, `ctr_img` and `ad_share` per
      impression.
    """
    seen: dict[str, list[np.ndarray]] = {}
    for batch in fill_devices(batches):
        real = real_rows(batch)
        request = jax.tree.map(lambda x, real=real: np.asarray(x)[real], request_of(batch))
        slate = jax.tree.map(np.asarray, mechanism.allocate(request, rule, **levers))
        clicks = {"model": (slate.pctr, slate.pctr_image)}
        if truth is not None:
            shown = slate.items, slate.creatives, slate.is_ad
            responses = truth.responses(batch["session"][real], *shown)
            clicks["truth"] = np.asarray(responses.click_poi), np.asarray(responses.click_image)
        for judge, (poi, image) in clicks.items():
            seen.setdefault(judge, []).append(_sums(slate, poi, image))
    return {judge: _figures(*np.sum(parts, axis=0)) for judge, parts in seen.items()}


def _sums(slate: Slate, click: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Sums payments, bids of clicks, POI and image clicks, ads and impressions over slates."""
    money = click * slate.price_per_click, click * slate.bid
    parts = *money, click, image, slate.is_ad, slate.items >= 0
    return np.array([part.sum(dtype=np.float64) for part in parts])


def _figures(
    paid: float, offered: float, clicks: float, images: float, ads: float, impressions: float
) -> dict[str, float]:
    shown = max(impressions, 1.0)
    per_thousand = {"rpm": 1000 * paid / shown, "bid_rpm": 1000 * offered / shown}
    rates = {"ctr_poi": clicks / shown, "ctr_img": images / shown, "ad_share": ads / shown}
    return per_thousand | rates
