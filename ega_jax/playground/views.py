"""What the playground shows of one request under given settings."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ega_jax.auction.system import Allocation, Levers, Menu, System
from ega_jax.mechanism import TRUTHFUL, Mechanism
from ega_jax.playground.bid_curve import BidCurve, bid_curve, reports
from ega_jax.playground.logged import LoggedRequests, Names
from ega_jax.types import AnyRequest, Request

LEVERS = ("alpha", "beta", "kappa", "reserve", "max_ads")  # Those that the playground moves.


@dataclasses.dataclass(frozen=True)
class Controls:
    """The settings of the playground."""

    number: int  # Of the test request.
    rule: str  # Payment rule.
    levers: Mapping[str, float]  # `LEVERS`.
    ad: int  # Candidate whose bid is set, -1 for none.
    bid: float  # Its bid, currency per click.


@dataclasses.dataclass(frozen=True)
class Item:
    """A POI as people read it."""

    title: str
    category: str
    image: str = ""  # Which of its images is shown.


@dataclasses.dataclass(frozen=True)
class Slot:
    """A filled slot of the slate, with the explanation of its item."""

    item: Item
    is_ad: bool
    is_new: bool  # The usual slate does not show the item.
    is_own: bool  # The ad whose bid is set.
    price: float  # Currency per click, as charged.
    pctr: float  # Click probability of the POI.
    pctr_image: float  # Click probability of the image.
    why: Mapping[str, Any]  # As `Explanation.to_dict` has it.


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An item that the request may show."""

    item: Item
    is_ad: bool
    is_own: bool  # The ad whose bid is set.
    bid: float  # Currency per click.
    slates: int  # Number of slates of the menu that show it.
    slot: int  # From 1; 0 if it is not shown.


@dataclasses.dataclass(frozen=True)
class View:
    """A slate with its explanation and its candidates, and its totals per request."""

    slots: list[Slot]
    candidates: list[Candidate]  # Ads with the highest bid first, then organic items.
    num_slates: int  # Slates of the menu.
    clicks: float  # Expected number of clicks.
    revenue: float  # Expected currency.
    value: float  # Expected value of the clicks to advertisers, at their bids, currency.
    charged: str  # The payment rule of the prices; the truthful mode charges those of `clarke`.


@dataclasses.dataclass(frozen=True)
class Playground:
    """A mechanism and the test requests on which it is tried."""

    mechanism: Mechanism
    requests: LoggedRequests
    names: Names

    @property
    def num_slots(self) -> int:
        """K."""
        return self.mechanism.system.config.reward.num_slots

    @property
    def trained_levers(self) -> dict[str, float]:
        """The mechanism's own `LEVERS`; its most ads are at most the slots."""
        levers = {name: float(getattr(self.mechanism.levers, name)) for name in LEVERS}
        return levers | {"max_ads": min(int(levers["max_ads"]), self.num_slots)}

    def title(self, number: int, candidate: int) -> str:
        """What a candidate of a request is called."""
        return self.names.title(int(self.requests.batch.item[number, candidate]))

    def history(self, number: int) -> list[Item]:
        """The user's behaviours before a request, most recent first."""
        request = self.requests.request(number)
        pairs = zip(request.history_poi[0], request.history_creative[0], strict=True)
        return [self._item(int(poi), int(creative)) for poi, creative in pairs if poi >= 0][::-1]

    def ad_titles(self, number: int) -> dict[str, int]:
        """What the ads of a request are called, with their bids -> candidate; highest bid first."""
        requests = self.requests
        return {
            f"{self.title(number, ad)} ({requests.bid(number, ad):.2f})": ad
            for ad in requests.ads(number)
        }

    def first_ad(self, number: int) -> int:
        """The first ad of the usual slate, else the one of the highest bid, -1 without ads."""
        shown, _ = self._allocated(self.requests.request(number), None, {})
        return int([*shown.candidate[shown.is_ad], *self.requests.ads(number), -1][0])

    def view(self, controls: Controls) -> View:
        """The slate under some settings.

        Raises:
          UserError: the settings do not fit together.
        """
        request = self.requests.request(controls.number, controls.ad, controls.bid)
        shown, menu = self._allocated(request, controls.rule, controls.levers)
        charged = "clarke" if controls.rule == TRUTHFUL else controls.rule
        slots = list(self._slots(request, shown, controls, charged))
        return View(
            slots=slots,
            candidates=self._candidates(request, shown, menu, controls.ad),
            num_slates=int(menu.where.sum()),
            clicks=sum(slot.pctr for slot in slots),
            revenue=sum(slot.pctr * slot.price for slot in slots),
            value=sum(slot.pctr * slot.why["bid"] for slot in slots),
            charged=charged,
        )

    def curve(self, controls: Controls) -> BidCurve | None:
        """What the ad of the settings gets at other bids; None without an ad.

        Raises:
          UserError: the settings do not fit together.
        """
        number, ad = controls.number, controls.ad
        if ad < 0:
            return None
        request = self.requests.request(number)
        highest = self.requests.highest_bid(number, ad)
        bids = reports(controls.bid, self.requests.bid(number, ad), highest)
        return bid_curve(self.mechanism, request, ad, bids, controls.rule, **controls.levers)

    def _allocated(
        self, request: Request, rule: str | None, levers: Mapping[str, float]
    ) -> tuple[Allocation, Menu]:
        """Slate `[K]` and menu `[S, K]` of a batch of one request, on the host."""
        system, _, _, checked, settings, _ = self.mechanism.arguments(request, rule, **levers)
        return jax.device_get(_allocate(system, jax.tree.map(lambda x: x[0], checked), settings))

    def _slots(
        self, request: Request, shown: Allocation, controls: Controls, charged: str
    ) -> Iterator[Slot]:
        """The filled slots, each with its explanation."""
        usual, _ = self._allocated(self.requests.request(controls.number), None, {})
        why = self.mechanism.explain(request, 0, controls.rule, **controls.levers)
        for slot in why.to_dict():
            place, poi, is_ad = slot["slot"], slot["items"], bool(slot["is_ad"])
            yield Slot(
                item=self._item(poi, slot["creatives"]),
                is_ad=is_ad,
                is_new=poi not in usual.item,
                is_own=is_ad and int(shown.candidate[place]) == controls.ad,
                price=slot["price"][charged],
                pctr=slot["pctr"],
                pctr_image=float(shown.prediction.click_image[place]),
                why=slot,
            )

    def _candidates(
        self, request: Request, shown: Allocation, menu: Menu, own: int
    ) -> list[Candidate]:
        """The ads by bid, then the organic items in upstream order."""
        item, is_ad, bid = request.item[0], request.is_ad[0], request.bid[0]
        ads, organic = (np.flatnonzero(kind & (item >= 0)) for kind in (is_ad, ~is_ad))
        order = [*ads[np.argsort(-bid[ads], kind="stable")].tolist(), *organic.tolist()]
        found = np.where(menu.where[:, None], menu.candidate, -1)
        slots = {candidate: slot + 1 for slot, candidate in enumerate(shown.candidate.tolist())}
        return [
            Candidate(
                item=self._item(int(item[place])),
                is_ad=bool(is_ad[place]),
                is_own=place == own,
                bid=float(bid[place]),
                slates=int((found == place).any(axis=1).sum()),
                slot=slots.get(place, 0),
            )
            for place in order
        ]

    def _item(self, poi: int, creative: int = -1) -> Item:
        names = self.names
        return Item(names.title(poi), names.categories[poi], names.image(poi, creative))


@jax.jit
def _allocate(system: System, request: AnyRequest, levers: Levers) -> tuple[Allocation, Menu]:
    """Slate and menu of one request, without prices."""
    return system.allocate(system.prepare(request, levers))
