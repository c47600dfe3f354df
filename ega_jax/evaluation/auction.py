"""The metrics of an auction, by the model's click probabilities and by the true ones (sec. 5).

A mechanism runs on sessions of a log, whose bids are the true values. For every report of its
advertisers the allocation runs again. All payment rules price the same slates and reports, so one
pass measures all rules. On a simulated log the true click probabilities score them too, exactly
and without sampling clicks: scores by a mechanism's own reward model can be too high.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ega_jax.auction.system import Levers
from ega_jax.data.market.clicks import Responses, Truth
from ega_jax.evaluation.incentives import non_monotone, psi
from ega_jax.evaluation.misreports import (
    MULTIPLES,
    Reported,
    Truthful,
    explore,
    prepare_batch,
    truthful,
)
from ega_jax.mechanism import Mechanism
from ega_jax.phases.requests import real_rows, request_of
from ega_jax.reward.model import Predictions
from ega_jax.training.mesh import fill_devices

__all__ = ["Judged", "judge", "psi", "scores", "systems"]

MYERSON = "myerson"  # The oracle: the only truthful prices of a monotone allocation.
# Myerson's prices from the model's click probabilities; computable without the truth.
MODEL_MYERSON = "myerson_model"
HONEST = int(np.flatnonzero(MULTIPLES == 1.0)[0])  # Index of the true value in MULTIPLES.
TEN = 8 * np.arange(1, 11)  # Indices of .2, .4, ..., 2.0.
MONOTONE_TOLERANCE = 1e-7  # A smaller decrease of a click probability is rounding.


@dataclasses.dataclass(frozen=True)
class Judged:
    """`D` sessions scored by one judge (model or truth), with `A` ads and `J` reports; float64."""

    click: np.ndarray  # [D, K] click probability of each slot's POI, 0 where empty.
    image: np.ndarray  # [D, K] click probability of its image.
    convert: np.ndarray  # [D, K] probability of a conversion, which follows a click on the POI.
    shown: np.ndarray  # [D, K] bool, the slot is filled.
    is_ad: np.ndarray  # [D, K] bool.
    price: dict[str, np.ndarray]  # Rule -> [D, K] currency per click.
    value: np.ndarray  # [D, A] currency per click; the first K entries are the slots' ads.
    where: np.ndarray  # [D, A] bool.
    bid: np.ndarray  # [D, A, J] reports, the `MULTIPLES` first.
    clicks: np.ndarray  # [D, A, J] the ad's click probability at each of its reports.
    charge: dict[str, np.ndarray]  # Rule -> [D, A, J] currency per click.

    @property
    def num_slots(self) -> int:
        """K."""
        return self.click.shape[1]

    @property
    def winners(self) -> np.ndarray:
        """`[D, A]` bool, the ads of the slates."""
        return self.where & (np.arange(self.where.shape[1]) < self.num_slots)

    def utility(self, rule: str) -> np.ndarray:
        """`[D, A, J]` value less price of an ad's clicks at each of its reports, currency."""
        return self.clicks * (self.value[..., None] - self.charge[rule])


def judge(
    mechanism: Mechanism,
    levers: Levers,
    batches: Iterable[Mapping[str, np.ndarray]],
    truth: Truth | None,
    num_losing: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Judged]:
    """Runs a mechanism on sessions and tries all reports of its ads.

    Args:
      mechanism: the mechanism to measure.
      levers: its run-time settings.
      batches: batches with the fields of `Request` and `session`; blank rows are skipped.
      truth: the log's true click probabilities, `None` if unknown.
      num_losing: the number of ads outside the slate whose reports are tried too.
      progress: called with the number of finished sessions.

    Returns:
      The sessions scored by `model` and, with a truth, by `truth`.
    """
    seen: dict[str, list[Judged]] = {}
    done = 0
    for batch in fill_devices(batches):
        for name, judged in judge_batch(mechanism, levers, batch, truth, num_losing).items():
            seen.setdefault(name, []).append(judged)
        done += int(real_rows(batch).sum())
        progress(done)
    return {name: _joined(parts) for name, parts in seen.items()}


def judge_batch(
    mechanism: Mechanism,
    levers: Levers,
    batch: Mapping[str, np.ndarray],
    truth: Truth | None,
    num_losing: int,
) -> dict[str, Judged]:
    """Judges the sessions of one batch, but not its blank rows; see `judge`."""
    prepared = prepare_batch(mechanism.system, request_of(batch), levers)
    fair = truthful(mechanism, prepared, num_losing)
    tried = explore(mechanism, prepared, fair)
    real, rules = real_rows(batch), mechanism.pricing.rules
    rows = lambda tree: jax.tree.map(lambda x: np.asarray(x)[real], tree)
    fair, tried, session = rows(fair), rows(tried), batch["session"][real]
    judged = {"model": _by_model(rules, fair, tried)}
    if truth is not None:
        judged["truth"] = _by_truth(rules, fair, tried, truth, session)
    return judged


def _by_model(rules, fair: Truthful, tried: Reported) -> Judged:
    return _judged(rules, fair, tried, fair.allocation.prediction, tried.clicks)


def _by_truth(rules, fair: Truthful, tried: Reported, truth: Truth, session: np.ndarray) -> Judged:
    slate = fair.allocation
    responses = truth.responses(session, slate.item, slate.creative, slate.is_ad)
    ads, reports, slots = tried.item.shape[1:]
    clicks = np.zeros(tried.slot.shape)
    for row, number in enumerate(session):  # One session has A * J slates.
        flat = [x[row].reshape(-1, slots) for x in (tried.item, tried.creative, tried.is_ad)]
        click = truth.responses(np.full(ads * reports, number), *flat).click_poi
        own = np.asarray(click)[np.arange(ads * reports), tried.slot[row].reshape(-1)]
        clicks[row] = np.where(tried.slot[row] >= 0, own.reshape(ads, reports), 0.0)
    return _judged(rules, fair, tried, responses, clicks)


def _judged(
    rules, fair: Truthful, tried: Reported, responses: Predictions | Responses, clicks
) -> Judged:
    """Combines click probabilities with the prices of all rules and of both oracles."""
    slots = fair.allocation.item.shape[1]
    exact = lambda x: np.asarray(x, np.float64)
    judged = Judged(
        click=exact(responses.click_poi),
        image=exact(responses.click_image),
        convert=exact(responses.click_poi) * exact(responses.convert),
        shown=np.asarray(fair.allocation.item) >= 0,
        is_ad=np.asarray(fair.allocation.is_ad),
        price={rule: exact(fair.prices[rule]) for rule in rules},
        value=exact(fair.value),
        where=np.asarray(fair.ad) >= 0,
        bid=exact(tried.bid),
        clicks=exact(clicks),
        charge={rule: exact(tried.price[rule]) for rule in rules},
    )
    for oracle, known in ((MYERSON, judged.clicks), (MODEL_MYERSON, exact(tried.clicks))):
        charge = myerson_prices(judged.bid, known)
        judged.charge[oracle] = charge
        judged.price[oracle] = np.where(judged.is_ad, charge[:, :slots, HONEST], 0.0)
    return judged


def myerson_prices(bid: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """Computes Myerson's price per click at every report.

    `P(b) = b x(b) - integral_0^b x(s) ds`, divided by `x(b)` and clipped to `[0, b]`. The integral
    uses the trapezoidal rule over the reports.

    Args:
      bid: `[..., J]` reports, in any order; one is 0.
      clicks: `[..., J]` click probability at each report.

    Returns:
      `[..., J]` currency per click, 0 where there are no clicks.
    """
    order = np.argsort(bid, axis=-1, kind="stable")
    b, x = np.take_along_axis(bid, order, -1), np.take_along_axis(clicks, order, -1)
    steps = np.diff(b) * (x[..., 1:] + x[..., :-1]) / 2
    area = np.concatenate([np.zeros_like(b[..., :1]), np.cumsum(steps, axis=-1)], axis=-1)
    per_click = np.where(x > 0, b - area / np.where(x > 0, x, 1.0), 0.0)
    price = np.empty_like(per_click)
    np.put_along_axis(price, order, np.clip(per_click, 0.0, b), -1)
    return price


def scores(judged: Judged, rule: str) -> dict[str, float]:
    """Computes the metrics of an auction under one payment rule (paper sec. 5).

    Returns:
      `rpm`: currency per 1000 impressions. `surplus`: value less price of clicks on ads, likewise.
      `ctr_poi`, `ctr_img`, `ad_share`: per impression. `conversions`: per 1000 impressions.
      `psi_fine`: total regret over total utility of the slates' ads, with all reports.
      `psi`: the same as `psi_fine`.
      `psi_10`: the same with ten reports only, .2 to 2 times the value.
      `psi_paper`: the paper's formula with the ten reports: the sum over sessions and ads of regret
        over utility, divided by the number of sessions.
      `psi_mean_ratio`: the mean over ads instead.
      `psi_dropped`: the number of ads without utility, which both leave out.
      `psi_all`: as `psi_fine`, with losing ads too (the `auction.num_losing` of the highest score).
    """
    impressions = max(judged.shown.sum(), 1)
    utility, winners = judged.utility(rule), judged.winners
    measure = lambda reports, where: psi(utility[..., HONEST], utility[..., reports], where)
    every = np.arange(utility.shape[-1])
    fine, ten = measure(every, winners), measure(TEN, winners)
    slots = judged.value[:, : judged.num_slots]
    gain = np.where(judged.is_ad, slots - judged.price[rule], 0.0)
    return {
        "rpm": float(1000 * (judged.click * judged.price[rule]).sum() / impressions),
        "ctr_poi": float(judged.click.sum() / impressions),
        "ctr_img": float(judged.image.sum() / impressions),
        "ad_share": float(judged.is_ad.sum() / impressions),
        "conversions": float(1000 * judged.convert.sum() / impressions),
        "surplus": float(1000 * (judged.click * gain).sum() / impressions),
        "psi": fine["psi"],
        "psi_fine": fine["psi"],
        "psi_10": ten["psi"],
        "psi_paper": ten["psi_paper"],
        "psi_mean_ratio": ten["psi_mean_ratio"],
        "psi_dropped": ten["dropped"],
        "psi_all": measure(every, judged.where)["psi"],
    }


def non_monotone_share(judged: Judged) -> float:
    """Returns the share of the slates' advertisers who can lose clicks by bidding more."""
    winners = judged.where[:, : judged.num_slots]
    order = np.argsort(judged.bid, axis=-1, kind="stable")
    clicks = np.take_along_axis(judged.clicks, order, -1)[:, : judged.num_slots]
    fallen = non_monotone(clicks, winners, MONOTONE_TOLERANCE)
    return float(fallen.sum() / max(winners.sum(), 1))


def systems(judged: Mapping[str, Judged], name: str, rule: str) -> dict[str, dict[str, Any]]:
    """Returns the metrics of an allocation under every payment rule, as in `results.json`.

    Args:
      judged: the result of `judge`.
      name: the system's name.
      rule: the system's payment rule; the results under another rule are called `NAME-RULE`.

    Returns:
      System -> `{judge: metrics, psi_floor, non_monotone_share}`. The floor is Psi under Myerson's
      prices of the same allocation, by the last judge (`truth` if known): an estimate of the
      regret that no payment rule removes.
    """
    last = list(judged.values())[-1]
    shared = {
        "psi_floor": scores(last, MYERSON)["psi"],
        "non_monotone_share": non_monotone_share(last),
    }
    return {
        name if each == rule else f"{name}-{each}": {
            by: scores(seen, each) for by, seen in judged.items()
        }
        | shared
        for each in last.price
    }


def _joined(parts: list[Judged]) -> Judged:
    fields = [dataclasses.asdict(part) for part in parts]
    return Judged(**jax.tree.map(lambda *x: np.concatenate(x), *fields))
