"""The score of an auction, by the model's click probabilities and by the true ones (paper sec. 5).

A mechanism is run on sessions of a log, whose bids are the true values, and every report of its
advertisers is tried with the allocation run again. The same slates and reports are priced by every
rule, so one pass gives the score of all. On a simulated log the truth scores them too, exactly and
without drawing clicks: a mechanism graded by its own reward model can look good by being wrong.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ega_jax.auction.system import Levers
from ega_jax.data.market.clicks import Truth
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
from ega_jax.phases.auction import real_rows, request_of
from ega_jax.training.mesh import fill_devices

__all__ = ["Judged", "judge", "psi", "scores", "systems"]

MYERSON = "myerson"  # The oracle: the only truthful prices of a monotone allocation.
# Myerson's prices of the clicks that the model expects: all that a rule without the truth can do.
MODEL_MYERSON = "myerson_model"
HONEST = int(np.flatnonzero(MULTIPLES == 1.0)[0])  # Place of the true value among the reports.
TEN = 8 * np.arange(1, 11)  # Places of .2, .4, ..., 2.0.
MONOTONE_TOLERANCE = 1e-7  # Falls of a click probability below it are rounding.


@dataclasses.dataclass(frozen=True)
class Judged:
    """Sessions as one judge sees them: `D` sessions, `A` ads of each, `J` reports; float64."""

    click: np.ndarray  # [D, K] click probability of each slot's POI, 0 where empty.
    image: np.ndarray  # [D, K] of its image.
    shown: np.ndarray  # [D, K] bool, the slot is filled.
    is_ad: np.ndarray  # [D, K] bool.
    price: dict[str, np.ndarray]  # Rule -> [D, K] currency per click.
    value: np.ndarray  # [D, A] currency per click; the first K ads are those of the slots.
    where: np.ndarray  # [D, A] bool.
    bid: np.ndarray  # [D, A, J] reports, those of `MULTIPLES` first.
    clicks: np.ndarray  # [D, A, J] click probability of the ad when it reports so.
    charge: dict[str, np.ndarray]  # Rule -> [D, A, J] currency per click.

    @property
    def num_slots(self) -> int:
        """K."""
        return self.click.shape[1]


def judge(
    mechanism: Mechanism,
    levers: Levers,
    batches: Iterable[Mapping[str, np.ndarray]],
    truth: Truth | None,
    num_losing: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Judged]:
    """Runs a mechanism on sessions and tries all reports.

    Args:
      mechanism: what is judged.
      levers: its run-time settings.
      batches: with the fields of `Request` and `session`; blank rows are skipped.
      truth: of the log, where it has one.
      num_losing: ads outside the slate whose reports are tried too.
      progress: called with the number of sessions done.

    Returns:
      What `model` and, with a truth, `truth` see.
    """
    seen: dict[str, list[Judged]] = {}
    rules, done = mechanism.pricing.rules, 0
    for batch in fill_devices(batches):
        request = request_of(batch)
        prepared = prepare_batch(mechanism.system, request)
        fair = truthful(mechanism, prepared, request.bid, levers, num_losing)
        tried = explore(mechanism, prepared, request.bid, levers, fair)
        real = real_rows(batch)
        rows = lambda tree, real=real: jax.tree.map(lambda x: np.asarray(x)[real], tree)
        fair, tried, session = rows(fair), rows(tried), batch["session"][real]
        seen.setdefault("model", []).append(_by_model(rules, fair, tried))
        if truth is not None:
            seen.setdefault("truth", []).append(_by_truth(rules, fair, tried, truth, session))
        done += len(session)
        progress(done)
    return {name: _joined(parts) for name, parts in seen.items()}


def _by_model(rules, fair: Truthful, tried: Reported) -> Judged:
    prediction = fair.allocation.prediction
    return _judged(rules, fair, tried, prediction.click_poi, prediction.click_image, tried.clicks)


def _by_truth(rules, fair: Truthful, tried: Reported, truth: Truth, session: np.ndarray) -> Judged:
    slate = fair.allocation
    responses = truth.responses(session, slate.item, slate.creative, slate.is_ad)
    ads, reports, slots = tried.item.shape[1:]
    clicks = np.zeros(tried.slot.shape)
    for row, number in enumerate(session):  # A session's reports are many slates already.
        flat = [x[row].reshape(-1, slots) for x in (tried.item, tried.creative, tried.is_ad)]
        click = truth.responses(np.full(ads * reports, number), *flat).click_poi
        own = np.asarray(click)[np.arange(ads * reports), tried.slot[row].reshape(-1)]
        clicks[row] = np.where(tried.slot[row] >= 0, own.reshape(ads, reports), 0.0)
    return _judged(rules, fair, tried, responses.click_poi, responses.click_image, clicks)


def _judged(rules, fair: Truthful, tried: Reported, click, image, clicks) -> Judged:
    """Puts prices beside click probabilities, the oracles' among them."""
    slots = fair.allocation.item.shape[1]
    exact = lambda x: np.asarray(x, np.float64)
    judged = Judged(
        click=exact(click),
        image=exact(image),
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
    """Myerson's price of a click at every report, from the reports below it.

    `P(b) = b x(b) - integral_0^b x(s) ds`, charged per click, between 0 and the bid.

    Args:
      bid: `[..., J]` reports, 0 among them.
      clicks: `[..., J]` click probability at each.

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
    """The metrics of an auction under one payment rule (paper sec. 5).

    Returns:
      `rpm` currency per 1000 impressions, `ctr_poi`, `ctr_img`, `ad_share` per impression;
      `psi_fine`: regret over utility with all reports; `psi_10`: with ten only, .2 to 2 times the
      value; `psi` is `psi_fine`; `psi_mean_ratio`: mean of regret over utility per term,
      with the ten (the paper divides by sessions); `psi_dropped`: the terms it leaves out;
      `psi_all`: as `psi_fine`, with the losing ads that were followed too (`auction.num_losing`
      of the highest score).
    """
    impressions = max(judged.shown.sum(), 1)
    value = judged.value[..., None]
    utility = judged.clicks * (value - judged.charge[rule])
    winners = judged.where & (np.arange(judged.where.shape[1]) < judged.num_slots)
    measure = lambda reports, where: psi(utility[..., HONEST], utility[..., reports], where)
    every = np.arange(utility.shape[-1])
    fine, ten = measure(every, winners), measure(TEN, winners)
    return {
        "rpm": float(1000 * (judged.click * judged.price[rule]).sum() / impressions),
        "ctr_poi": float(judged.click.sum() / impressions),
        "ctr_img": float(judged.image.sum() / impressions),
        "ad_share": float(judged.is_ad.sum() / impressions),
        "psi": fine["psi"],
        "psi_fine": fine["psi"],
        "psi_10": ten["psi"],
        "psi_mean_ratio": ten["psi_mean_ratio"],
        "psi_dropped": ten["dropped"],
        "psi_all": measure(every, judged.where)["psi"],
    }


def non_monotone_share(judged: Judged) -> float:
    """Share of the slates' advertisers who can lose clicks by bidding more."""
    winners = judged.where[:, : judged.num_slots]
    order = np.argsort(judged.bid, axis=-1, kind="stable")
    clicks = np.take_along_axis(judged.clicks, order, -1)[:, : judged.num_slots]
    fallen = non_monotone(clicks, winners, MONOTONE_TOLERANCE)
    return float(fallen.sum() / max(winners.sum(), 1))


def systems(judged: Mapping[str, Judged], name: str, rule: str) -> dict[str, dict[str, Any]]:
    """Results of an allocation under every payment rule, as `results.json` has them.

    Args:
      judged: from `judge`, by judge.
      name: of the system.
      rule: its own payment rule; the others are called `NAME-RULE`.

    Returns:
      System -> `{judge: metrics, psi_floor, non_monotone_share}`. The floor is Psi of Myerson's
      prices on the same allocation, by the last judge: regret that no payment rule removes.
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
