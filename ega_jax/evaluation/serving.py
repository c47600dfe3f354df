"""Serving logged sessions under given levers: value, revenue and responses (paper sec. 5)."""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ega_jax.data.market.clicks import Truth
from ega_jax.mechanism import Mechanism
from ega_jax.phases.requests import request_of, without_blanks
from ega_jax.reward.model import Predictions
from ega_jax.training.mesh import fill_devices
from ega_jax.types import Slate

THOUSAND = 1000.0  # Money and conversions are stated per 1000 impressions.


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Expected outcomes of `D` served sessions by one judge (model or truth), `[D]` float64.

    Totals over sessions are held in the same form, with any axes left.
    """

    impressions: np.ndarray  # Items shown.
    ads: np.ndarray  # Ads shown.
    clicks: np.ndarray  # Clicks on POIs.
    images: np.ndarray  # Clicks on creatives.
    conversions: np.ndarray
    value: np.ndarray  # Clicks on ads times their bids, which are the true values, currency.
    paid: np.ndarray  # Clicks on ads times their prices, currency.

    @property
    def total(self) -> "Outcomes":
        """The sums over the sessions."""
        return Outcomes(*(np.sum(x, axis=-1) for x in vars(self).values()))

    def figures(self) -> dict[str, np.ndarray]:
        """Returns the metrics of totals.

        Returns:
          `value`, `rpm` (revenue), `surplus` (value less revenue), each in currency per 1000
          impressions; `conversions` per 1000 impressions; `ctr_poi`, `ctr_img` and `ad_share` per
          impression.
        """
        shown = np.maximum(self.impressions, 1.0)
        return {
            "value": THOUSAND * self.value / shown,
            "rpm": THOUSAND * self.paid / shown,
            "surplus": THOUSAND * (self.value - self.paid) / shown,
            "conversions": THOUSAND * self.conversions / shown,
            "ctr_poi": self.clicks / shown,
            "ctr_img": self.images / shown,
            "ad_share": self.ads / shown,
        }

    def of(self, rows: np.ndarray) -> "Outcomes":
        """Returns some of the sessions: `rows` are numbers, of any shape `[...]`, or a mask."""
        return Outcomes(*(x[rows] for x in vars(self).values()))


Batch = Mapping[str, Any]
# From a batch and the slates served to it to the probabilities of responses, each `[B, K]`: a click
# of the POI, a click of the creative, and a conversion given the first.
Judge = Callable[[Batch, Slate], tuple[Any, Any, Any]]


def by_model(batch: Batch, slate: Slate) -> tuple[Any, Any, Any]:
    """What the system itself predicts; a `Judge`."""
    return slate.pctr, slate.pctr_image, slate.pcvr


def by_truth(truth: Truth) -> Judge:
    """Returns the judge that knows the true probabilities of the log."""

    def responses(batch: Batch, slate: Slate) -> tuple[Any, Any, Any]:
        true = truth.responses(batch["session"], slate.items, slate.creatives, slate.is_ad)
        return true.click_poi, true.click_image, true.convert

    return responses


def by_reward_model(predict: Callable[[Batch], Predictions]) -> Judge:
    """Returns the judge that asks another reward model.

    Args:
      predict: predicts the responses to the slates of a batch; see `phases.reward`.
    """

    def responses(batch: Batch, slate: Slate) -> tuple[Any, Any, Any]:
        shown = {"shown_poi": slate.items, "shown_creative": slate.creatives}
        found = predict(dict(batch) | shown | {"shown_is_ad": slate.is_ad})
        return found.click_poi, found.click_image, found.convert

    return responses


def judges_of(truth: Truth | None) -> dict[str, Judge]:
    """The judges of reported figures: `model` and, if it is known, `truth`."""
    return {"model": by_model} | ({} if truth is None else {"truth": by_truth(truth)})


def served(
    mechanism: Mechanism,
    batches: Iterable[Batch],
    judges: Mapping[str, Judge],
    rule: str | None = None,
    **levers: float,
) -> dict[str, dict[str, float]]:
    """Serves sessions, whose bids are the true values, and measures revenue and responses.

    Args:
      mechanism: the mechanism to measure.
      batches: batches with the fields of `Request` and `session`; blank rows are skipped.
      judges: by name; see `judges_of`.
      rule: the payment rule; default: the mechanism's.
      **levers: levers that replace the mechanism's.

    Returns:
      The figures of `Outcomes` by judge.
    """
    seen: dict[str, list[Outcomes]] = {}
    for batch in fill_devices(batches):
        for judge, outcomes in served_batch(mechanism, batch, judges, rule, **levers).items():
            seen.setdefault(judge, []).append(outcomes)
    return {judge: figures_of(joined(parts)) for judge, parts in seen.items()}


def figures_of(outcomes: Outcomes) -> dict[str, float]:
    """Returns the metrics of some sessions together; see `Outcomes.figures`."""
    return {name: float(value) for name, value in outcomes.total.figures().items()}


def served_batch(
    mechanism: Mechanism,
    batch: Batch,
    judges: Mapping[str, Judge],
    rule: str | None = None,
    **levers: float,
) -> dict[str, Outcomes]:
    """Serves one batch; all outcomes of blank rows are 0. The arguments are those of `served`."""
    batch, real = without_blanks(batch)  # No request may be blank.
    slate = jax.tree.map(np.asarray, mechanism.allocate(request_of(batch), rule, **levers))
    return _judged(slate, batch, real, judges)


def served_along(
    mechanism: Mechanism,
    batch: Batch,
    judges: Mapping[str, Judge],
    rule: str,
    points: Sequence[Mapping[str, float]],
) -> list[dict[str, Outcomes]]:
    """What `served_batch` returns for each of several settings of the levers."""
    batch, real = without_blanks(batch)
    slates = jax.device_get(mechanism.allocate_along(request_of(batch), rule, points))
    each = [jax.tree.map(operator.itemgetter(place), slates) for place in range(len(points))]
    return [_judged(slate, batch, real, judges) for slate in each]


def joined(parts: Iterable[Outcomes]) -> Outcomes:
    """Returns the sessions of all parts, in order."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Outcomes(*map(np.concatenate, columns))


def _judged(
    slate: Slate, batch: Batch, real: np.ndarray, judges: Mapping[str, Judge]
) -> dict[str, Outcomes]:
    """The outcomes of the slates of a batch; 0 in rows that are not `real`."""
    shown = np.asarray(slate.items >= 0) & real[:, None]
    return {name: _outcomes(slate, shown, *judge(batch, slate)) for name, judge in judges.items()}


def _outcomes(slate: Slate, shown: np.ndarray, click: Any, image: Any, convert: Any) -> Outcomes:
    """Sums over the slots `[B, K]` that are `shown`; responses are probabilities `[B, K]`."""
    total = lambda x: np.where(shown, np.asarray(x, np.float64), 0.0).sum(axis=-1)
    click = np.asarray(click, np.float64)
    return Outcomes(
        impressions=total(shown),
        ads=total(slate.is_ad),
        clicks=total(click),
        images=total(image),
        conversions=total(click * np.asarray(convert)),
        value=total(click * np.asarray(slate.bid)),
        paid=total(click * np.asarray(slate.price_per_click)),
    )
