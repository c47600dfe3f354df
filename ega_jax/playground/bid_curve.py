"""An ad's clicks and price per click as functions of its bid, with Myerson's price beside it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.auction.counterfactuals import counterfactuals
from ega_jax.auction.pricing import PricingConfig
from ega_jax.auction.system import Bidders, Levers, System
from ega_jax.evaluation.auction import myerson_prices
from ega_jax.evaluation.misreports import Reported, report_each
from ega_jax.generation.reports import Report
from ega_jax.mechanism import Mechanism
from ega_jax.types import AnyRequest, Params

BELOW, ABOVE = 32, 24  # Numbers of bids tried below and above the present one.
FAR = 1e3  # Times the highest bid tried: a bid at which an ad that can be shown is in the menu.


@dataclasses.dataclass(frozen=True)
class BidCurve:
    """What one ad gets at rising bids, by the model's click probabilities; the others stay."""

    bid: np.ndarray  # [J] currency per click; the first one is 0.
    clicks: np.ndarray  # [J] click probability, 0 if the ad is not shown.
    price: np.ndarray  # [J] currency per click, 0 if the ad is not shown.
    myerson: np.ndarray  # [J] the truthful price of these clicks if they rise, likewise.

    def at(self, bid: float) -> int:
        """The place of the bid that is nearest to a given one."""
        return int(np.argmin(np.abs(self.bid - bid)))

    def gain(self, value: float) -> tuple[float, float]:
        """The bid that is best for the ad, and what it gains by it over an honest bid.

        Args:
          value: the ad's value of a click, one of the bids.

        Returns:
          The bid, and the gain in expected currency per request, at least 0.
        """
        utility = self.clicks * (value - self.price)
        best, honest = int(np.argmax(utility)), self.at(value)
        if utility[best] <= utility[honest]:
            return value, 0.0
        return float(self.bid[best]), float(utility[best] - utility[honest])


def reports(bid: float, value: float, highest: float) -> np.ndarray:
    """Rising bids `[J]` to try for an ad, currency per click.

    Args:
      bid: its present bid, up to which there are more bids, since Myerson's price depends on them.
      value: its value of a click.
      highest: the highest bid; at least `bid` is tried.
    """
    below = np.linspace(0.0, bid, BELOW + 1)
    above = np.linspace(bid, max(bid, highest), ABOVE + 1)
    return np.sort(np.concatenate([below, above[1:], [value]])).astype(np.float32)


def bid_curve(
    mechanism: Mechanism, request: AnyRequest, ad: int, bids: np.ndarray, rule: str, **levers: float
) -> BidCurve:
    """Allocates and prices a request at each bid of one of its ads.

    Args:
      mechanism: the mechanism.
      request: a batch of one request.
      ad: the candidate that bids.
      bids: `[J]` rising, the first one 0, currency per click.
      rule: payment rule, one of `mechanism.choices`.
      **levers: as for `Mechanism.allocate`.

    Raises:
      UserError: as for `Mechanism.allocate`.
    """
    system, networks, pricing, checked, settings, chosen = mechanism.arguments(
        request, rule, **levers
    )
    single = jax.tree.map(lambda x: jnp.asarray(x[0]), checked)
    found = jax.device_get(
        _outcomes(system, networks, pricing, single, settings, jnp.int32(ad), jnp.asarray(bids))
    )
    charged = next(name for name, is_charged in chosen.is_rule.items() if is_charged)
    bid, clicks = (np.asarray(x, np.float64) for x in (found.bid, found.clicks))
    price = np.where(clicks > 0, found.price[charged], 0.0)
    return BidCurve(bid, clicks, price, myerson_prices(bid, clicks))


@functools.partial(jax.jit, static_argnames="pricing")
def _outcomes(
    system: System,
    networks: dict[str, Params],
    pricing: PricingConfig,
    request: AnyRequest,
    levers: Levers,
    ad: jax.Array,
    bids: jax.Array,
) -> Reported:
    """Outcomes `[J]` of the bids of one ad of one request."""
    prepared = system.prepare(request, levers)
    # The ad's quality does not depend on its bid, but only the ads of a menu have one.
    unchanged, far = Report.none(1), Report(ad[None], FAR * bids.max()[None])
    asked = jax.tree.map(lambda *x: jnp.concatenate(x), unchanged, far)
    menus = system.menus(prepared, asked)
    menu, rivals = jax.tree.map(lambda x: x[0], menus), jax.tree.map(lambda x: x[1], menus.rivals)
    quality = jnp.max(rivals.quality, where=rivals.ad == ad, initial=0.0)
    item = jnp.max(rivals.item, where=rivals.ad == ad, initial=-1)
    own = Bidders(ad[None], bids.max()[None], quality[None], item[None])
    known, _, _ = counterfactuals(system, pricing.probed, prepared, own, menu)
    found = report_each(system, networks, pricing, prepared, own.ad, known, bids[None])
    return jax.tree.map(lambda x: x[0], found)
