"""Closed-form payment rules, for simple auctions and for given slates (paper secs. 4.3.3, 5).

`gsp`, `vcg` and `clarke` allocate and price together; `myerson` prices one ad. Given a jax array,
they compute with jax in float32 and support all transformations. Given numbers, lists and numpy
arrays, they compute on the host in double precision: a payment is a difference of welfares, and if
these nearly cancel, rounding the inputs to float32 alone causes a relative error above 1e-6.

The `slate_*` rules price a slate that is already allocated. They are unbatched, `[K]`; organic
items have bid 0 and pay 0. All prices are between 0 and the bid (5).
"""

from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_TINY = float(np.finfo(np.float32).tiny)  # Replaces a divisor of 0; quotients are capped at bids.


def _first_bad(values: ArrayLike) -> tuple[list[int], float] | None:
    """Index and value of the first negative, NaN or infinite value; None for traced values."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
        return None
    values = np.asarray(values, np.float64)
    bad = np.argwhere(~(np.isfinite(values) & (values >= 0))).tolist()
    return (bad[0], values[tuple(bad[0])]) if bad else None


def check_bids(bids: ArrayLike, axes: tuple[str, ...] = ("request", "ad")) -> None:
    """Checks that bids are finite and at least 0; traced bids are not checked.

    Args:
      bids: `[N]` or `[B, N]`, currency per click.
      axes: names of the axes in the message, outermost first; for `[N]` the last one is used.

    Raises:
      ValueError: a bid is negative, NaN or infinite; names the first.
    """
    if bad := _first_bad(bids):
        place, bid = bad
        named = zip(axes[-len(place) :], place, strict=True)
        culprit = ", ".join(f"{axis} {i}" for axis, i in named)
        raise ValueError(f"{culprit}: a bid is finite and at least 0, got {bid}")


def _check_rates(**named: ArrayLike) -> None:
    """Raises a `ValueError` if a rate or reserve is negative, NaN or infinite."""
    for name, values in named.items():
        if bad := _first_bad(values):
            place, value = bad
            raise ValueError(f"{name} {place}: finite and at least 0, got {value}")


def _floats(*values: ArrayLike) -> tuple[ModuleType, list[Any]]:
    """Chooses jax.numpy if any value is a jax array, else numpy; converts the values to floats."""
    xp = jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values)) else np
    return xp, [xp.asarray(value, float) for value in values]


def _ranking(xp: ModuleType, bids: Any, quality: Any, where: Any, length: int) -> tuple:
    """Ranks ads by decreasing bid * quality, ties by index; pads to `length`.

    Returns:
      `[length]` indices, -1 at padding; and `[length]` bids and qualities, 0 at padding.
    """
    bids, quality, where = (xp.pad(value, (0, length)) for value in (bids, quality, where))
    order = xp.argsort(xp.where(where, -bids * quality, xp.inf), stable=True)[:length]
    where = where[order]
    ranked = (xp.where(where, value[order], 0.0) for value in (bids, quality))
    return xp.where(where, order, -1), *ranked


def _next_price(xp: ModuleType, below: Any, quality: Any, bid: Any) -> Any:
    """Lowest price per click at which an ad keeps its rank above the score `below`; at most bid."""
    return xp.minimum(below / xp.maximum(quality, _TINY), bid)


def gsp(
    bids: ArrayLike, quality: ArrayLike, num_slots: int, reserve: ArrayLike = 0.0
) -> tuple[Any, Any]:
    """Generalised second price: an ad pays, per click, the lowest bid that keeps its slot.

    `p_(k) = b_(k+1) q_(k+1) / q_(k)`, with ads in decreasing order of `b q`; at least the reserve
    and at most the ad's bid. The slots' click rates cancel.

    Args:
      bids: `[N]` currency per click.
      quality: `[N]` at least 0, the ad's factor of its click rate.
      num_slots: number of slots, best first.
      reserve: lowest price per click; ads with lower bids are excluded.

    Returns:
      `[num_slots]` int ad of each slot, -1 in empty slots, and `[num_slots]` price per click.

    Raises:
      ValueError: a bid or another argument is negative, NaN or infinite; names the first.

    Examples:
      Three ads for two slots: ad 0 pays 3 * 0.5 / 0.3, ad 1 pays 1 * 0.2 / 0.5.

      >>> order, price = gsp(bids=[6.0, 3.0, 1.0], quality=[0.3, 0.5, 0.2], num_slots=2)
      >>> order.tolist(), price.round(4).tolist()
      ([0, 1], [5.0, 0.4])
    """
    check_bids(bids)
    _check_rates(quality=quality, reserve=reserve)
    xp, (bid, quality, least) = _floats(bids, quality, reserve)
    chex.assert_equal_shape([bid, quality])
    chex.assert_rank(bid, 1)
    where = xp.asarray(bids) >= reserve  # Unrounded inputs: rounding must not exclude an ad.
    order, bid, quality = _ranking(xp, bid, quality, where, num_slots + 1)
    price = _next_price(xp, (bid * quality)[1:], quality[:-1], bid[:-1])
    return order[:-1], xp.minimum(xp.maximum(price, least), bid[:-1])


def vcg(
    bids: ArrayLike, quality: ArrayLike, slot_ctr: ArrayLike, reserve: ArrayLike = 0.0
) -> tuple[Any, Any]:
    """Vickrey-Clarke-Groves for separable click rates `quality_i * slot_ctr_k`.

    `P_(k) = sum_{l >= k} (c_l - c_{l+1}) b_(l+1) q_(l+1)`, with ads in decreasing order of `b q`
    and slots in decreasing order of their click rate `c`. A reserve bounds each term from below.
    All terms are at least 0, so there is no cancellation.

    Args:
      bids: `[N]` currency per click.
      quality: `[N]` at least 0, the ad's factor of its click rate.
      slot_ctr: `[K]` at least 0, the slot's factor; the best ad gets the slot with the highest.
      reserve: lowest price per click; ads with lower bids are excluded.

    Returns:
      `[K]` int ad of each slot, -1 in empty slots, and `[K]` total payment, currency per
      impression.

    Raises:
      ValueError: a bid or another argument is negative, NaN or infinite; names the first.

    Examples:
      Ad 0 pays (1 - 0.4) * 1.5 + 0.4 * 0.2, and ad 1 pays 0.4 * 0.2.

      >>> order, payment = vcg(
      ...     bids=[6.0, 3.0, 1.0], quality=[0.3, 0.5, 0.2], slot_ctr=[1.0, 0.4]
      ... )
      >>> order.tolist(), payment.round(4).tolist()
      ([0, 1], [0.98, 0.08])
    """
    check_bids(bids)
    _check_rates(quality=quality, slot_ctr=slot_ctr, reserve=reserve)
    xp, (bid, quality, rate, least) = _floats(bids, quality, slot_ctr, reserve)
    chex.assert_equal_shape([bid, quality])
    where = xp.asarray(bids) >= reserve
    by_rate = xp.argsort(-rate, stable=True)
    rate = xp.pad(rate[by_rate], (0, 1))
    order, bid, quality = _ranking(xp, bid, quality, where, rate.shape[0])
    to_beat = xp.maximum((bid * quality)[None, 1:], least * quality[:-1, None])  # [K, K]
    total = xp.triu((rate[:-1] - rate[1:])[None] * to_beat).sum(-1)
    total = xp.minimum(total, (bid * quality * rate)[:-1])
    undo = xp.argsort(by_rate)
    return order[undo], total[undo]


def clarke(bids: ArrayLike, clicks: ArrayLike) -> tuple[Any, Any]:
    """Chooses the slate with the highest welfare; each ad pays its externality (Clarke).

    `P_i = max_S sum_{j != i} b_j (x_j(S) - x_j(S*))`. The sum excludes the ad's own term, so a
    large own bid causes no loss of precision, and the term of `S = S*` is exactly 0.

    Args:
      bids: `[N]` currency per click.
      clicks: `[M, N]` click rate of each ad in each of the menu's `M` slates, 0 if absent.

    Returns:
      Index of the chosen slate, the first in case of ties, and `[N]` total payment, currency per
      impression.

    Raises:
      ValueError: a bid or another argument is negative, NaN or infinite (names the first), or the
        menu is empty.

    Examples:
      The second slate has the highest welfare, 4 * 0.5. Without ad 1, the first has it: 2 * 0.6.

      >>> chosen, payment = clarke(bids=[2.0, 4.0], clicks=[[0.6, 0.0], [0.0, 0.5]])
      >>> int(chosen), payment.round(4).tolist()
      (1, [0.0, 1.2])
    """
    check_bids(bids)
    _check_rates(clicks=clicks)
    xp, (bid, clicks) = _floats(bids, clicks)
    chex.assert_shape(clicks, (None, bid.shape[0]))
    if not clicks.shape[0]:
        raise ValueError("clicks: the menu has no slate")
    chosen = xp.argmax((bid[None] * clicks).sum(-1))
    change = bid[None] * (clicks - clicks[chosen][None])
    own = xp.eye(bid.shape[0], dtype=bool)[None]
    change_of_others = xp.where(own, 0.0, change[:, None, :]).sum(-1)  # [M, N]
    return chosen, xp.clip(change_of_others.max(0), 0.0, bid * clicks[chosen])


def myerson(bid_grid: ArrayLike, clicks: ArrayLike) -> Any:
    """Total payment under which truthful bids are optimal (Myerson, 1981).

    It is `b x(b) - integral_0^b x(s) ds`, computed as `integral_0^b s dx(s)` by the trapezoidal
    rule: exact if x is piecewise linear, and a sum of terms of at least 0 if x is non-decreasing. A
    jump counts at the midpoint of its interval; a repeated grid point locates it exactly. The
    payment is clipped to at least 0 if x decreases.

    Args:
      bid_grid: `[G]` currency per click, non-decreasing from 0 to the bid.
      clicks: `[G]` click rate of the ad at each bid, with all other bids fixed.

    Returns:
      Total payment at the last bid, currency per impression.

    Raises:
      ValueError: a bid or a click rate is negative, NaN or infinite (names the first), or the grid
        is empty, does not start at 0 or decreases.

    Examples:
      A bid above 2 wins a slot of click rate 0.5; it costs 2 * 0.5, whatever the bid:

      >>> payment = myerson(bid_grid=[0.0, 2.0, 2.0, 5.0], clicks=[0.0, 0.0, 0.5, 0.5])
      >>> round(float(payment), 4)
      1.0
    """
    check_bids(bid_grid, ("grid point",))
    _check_rates(clicks=clicks)
    xp, (grid, clicks) = _floats(bid_grid, clicks)
    chex.assert_rank([grid, clicks], 1)
    chex.assert_equal_shape([grid, clicks])
    if not grid.size:
        raise ValueError("bid_grid must rise from 0 to the bid, but it is empty")
    if not isinstance(grid, jax.core.Tracer) and (grid[0] != 0 or (np.diff(grid) < 0).any()):
        raise ValueError(f"bid_grid must rise from 0 to the bid, got {np.asarray(grid).tolist()}")
    payment = ((grid[1:] + grid[:-1]) / 2 * xp.diff(clicks)).sum()
    return xp.clip(payment, 0.0, grid[-1] * clicks[-1])


def slate_first_price(bid: jax.Array, is_ad: jax.Array) -> jax.Array:
    """Each ad of the slate pays its bid, `[K]` currency per click."""
    return jnp.where(is_ad, bid, 0.0)


def slate_gsp(
    bid: jax.Array, quality: jax.Array, is_ad: jax.Array, losing_score: chex.Numeric
) -> jax.Array:
    """Generalised second price among the ads of a slate, independent of their order in it.

    Args:
      bid: `[K]` currency per click.
      quality: `[K]` predicted click rate.
      is_ad: `[K]` bool.
      losing_score: highest bid * quality of an ad not shown, 0 if none; prices the last ad.

    Returns:
      `[K]` price per click.
    """
    score = jnp.where(is_ad, bid * quality, -1.0)
    order = jnp.argsort(-score)
    below = jnp.append(score[order][1:], -1.0)
    below = jnp.where(below < 0, losing_score, below)
    price = _next_price(jnp, below, quality[order], bid[order])
    return jnp.where(is_ad, price[jnp.argsort(order)], 0.0)


def slate_clarke(bid: jax.Array, pctr: jax.Array, cost: jax.Array) -> jax.Array:
    """Clarke payment of each ad, per click: its externality divided by its click rate.

    The externality equals `b pctr - r`, with the marginal contribution r of eq. 31.

    Args:
      bid: `[K]` currency per click, 0 for organic items.
      pctr: `[K]` predicted click rate; if it is 0, the price is 0.
      cost: `[K]` externality of the ad, currency per impression. It is an argument because
        computing `b pctr - r` loses precision for large bids.

    Returns:
      `[K]` price per click.
    """
    return jnp.where(pctr > 0, jnp.clip(cost / jnp.maximum(pctr, _TINY), 0.0, bid), 0.0)


def slate_myerson(bid_grid: jax.Array, clicks: jax.Array) -> jax.Array:
    """Myerson payment of each ad, per click at its bid.

    Args:
      bid_grid: `[K, G]` currency per click, rising from 0 to the bid; all 0 for organic items.
      clicks: `[K, G]` click rate at each of these bids; if the last is 0, the price is 0.

    Returns:
      `[K]` price per click.
    """
    price = jax.vmap(myerson)(bid_grid, clicks) / jnp.maximum(clicks[:, -1], _TINY)
    return jnp.clip(price, 0.0, bid_grid[:, -1])


def with_reserve(
    price: jax.Array, bid: jax.Array, is_ad: jax.Array, reserve: chex.Numeric
) -> jax.Array:
    """Raises the prices of ads to the reserve, but not above the bid; `[K]` currency per click."""
    return jnp.where(is_ad, jnp.minimum(jnp.maximum(price, reserve), bid), 0.0)
