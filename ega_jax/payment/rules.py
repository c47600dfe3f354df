"""Payment rules with closed forms, and the prices they put on a slate (paper sec. 4.3.3, 5).

The auctions `gsp`, `vcg`, `clarke` and `myerson` allocate and price in one go. They answer in
kind: jax arrays are priced where they are, in float32 and under any transformation; numbers, lists
and numpy arrays on the host in double precision. A payment is a difference of welfares, and where
these nearly cancel, rounding the inputs to float32 alone costs more than 1e-6 of it.

The `slate_*` rules price a slate already chosen, in whatever way. They are unbatched `[K]`; what
is not an ad has bid 0 and pays 0. All prices lie between 0 and the bid (5).
"""

from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_TINY = float(np.finfo(np.float32).tiny)  # Divides 0 into 0, and anything else beyond any bid.


def _first_bad(values: ArrayLike) -> tuple[list[int], float] | None:
    """Place and value of the first one that is negative, NaN or infinite; traced ones pass."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
        return None
    values = np.asarray(values, np.float64)
    bad = np.argwhere(~(np.isfinite(values) & (values >= 0))).tolist()
    return (bad[0], values[tuple(bad[0])]) if bad else None


def check_bids(bids: ArrayLike, axes: tuple[str, ...] = ("request", "ad")) -> None:
    """Refuses bids that are no price; traced ones cannot be read and pass.

    Args:
      bids: `[N]` or `[B, N]`, currency per click.
      axes: what the axes count, outermost first; the last ones are used.

    Raises:
      ValueError: names the first bid that is negative, NaN or infinite.
    """
    if bad := _first_bad(bids):
        place, bid = bad
        named = zip(axes[-len(place) :], place, strict=True)
        culprit = ", ".join(f"{axis} {i}" for axis, i in named)
        raise ValueError(f"{culprit}: a bid is finite and at least 0, got {bid}")


def _check_rates(**named: ArrayLike) -> None:
    """Refuses factors of click rates, and reserves, that are negative, NaN or infinite."""
    for name, values in named.items():
        if bad := _first_bad(values):
            place, value = bad
            raise ValueError(f"{name} {place}: finite and at least 0, got {value}")


def _floats(*values: ArrayLike) -> tuple[ModuleType, list[Any]]:
    """The library to compute with, jax.numpy or numpy, and the values as its floats."""
    xp = jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values)) else np
    return xp, [xp.asarray(value, float) for value in values]


def _ranking(xp: ModuleType, bids: Any, quality: Any, where: Any, length: int) -> tuple:
    """Ads in order of bid * quality, ties to the lower index, then empty places.

    Returns:
      `[length]` index, -1 where empty; and `[length]` bids and qualities, 0 where empty.
    """
    bids, quality, where = (xp.pad(value, (0, length)) for value in (bids, quality, where))
    order = xp.argsort(xp.where(where, -bids * quality, xp.inf), stable=True)[:length]
    where = where[order]
    ranked = (xp.where(where, value[order], 0.0) for value in (bids, quality))
    return xp.where(where, order, -1), *ranked


def _next_price(xp: ModuleType, below: Any, quality: Any, bid: Any) -> Any:
    """Least price of a click that keeps an ad above the score `below`, up to its bid."""
    return xp.minimum(below / xp.maximum(quality, _TINY), bid)


def gsp(
    bids: ArrayLike, quality: ArrayLike, num_slots: int, reserve: ArrayLike = 0.0
) -> tuple[Any, Any]:
    """Generalised second price: an ad pays the least bid that keeps its place, per click.

    `p_(k) = b_(k+1) q_(k+1) / q_(k)`, with ads in falling order of `b q`; at least the reserve and
    at most the own bid. The slots' click rates cancel.

    Args:
      bids: `[N]` currency per click.
      quality: `[N]` at least 0, the ad's own factor of its click rate.
      num_slots: slots, best first.
      reserve: least price of a click; ads that bid less are out.

    Returns:
      `[num_slots]` int ad of each slot, -1 where empty, and `[num_slots]` price per click.

    Raises:
      ValueError: names a bid, or another argument, that is negative, NaN or infinite.

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
    where = xp.asarray(bids) >= reserve  # As given: rounding must not decide who is out.
    order, bid, quality = _ranking(xp, bid, quality, where, num_slots + 1)
    price = _next_price(xp, (bid * quality)[1:], quality[:-1], bid[:-1])
    return order[:-1], xp.minimum(xp.maximum(price, least), bid[:-1])


def vcg(
    bids: ArrayLike, quality: ArrayLike, slot_ctr: ArrayLike, reserve: ArrayLike = 0.0
) -> tuple[Any, Any]:
    """Vickrey-Clarke-Groves for separable click rates `quality_i * slot_ctr_k`.

    `P_(k) = sum_{l >= k} (c_l - c_{l+1}) b_(l+1) q_(l+1)`, with ads in falling order of `b q` and
    slots in falling order of their click rate `c`. A reserve bounds each term from below. All terms
    are positive: nothing cancels.

    Args:
      bids: `[N]` currency per click.
      quality: `[N]` at least 0, the ad's own factor of its click rate.
      slot_ctr: `[K]` at least 0, the slot's factor; the best ad gets the highest.
      reserve: least price of a click; ads that bid less are out.

    Returns:
      `[K]` int ad of each slot, -1 where empty, and `[K]` total payment, currency per impression.

    Raises:
      ValueError: names a bid, or another argument, that is negative, NaN or infinite.

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
    """The slate of highest welfare, each ad paying what its presence costs the others.

    `P_i = max_S sum_{j != i} b_j (x_j(S) - x_j(S*))`. The ad's own term never enters, so a large
    bid of its own loses no precision, and the chosen slate contributes an exact 0.

    Args:
      bids: `[N]` currency per click.
      clicks: `[M, N]` click rate of each ad in each slate of the menu, 0 where absent.

    Returns:
      Index of the chosen slate, the first among equals, and `[N]` total payment, currency per
      impression.

    Raises:
      ValueError: names a bid, or another argument, that is negative, NaN or infinite.

    Examples:
      The second slate is worth most, 4 * 0.5. Without ad 1 the first would be shown, for 2 * 0.6.

      >>> chosen, payment = clarke(bids=[2.0, 4.0], clicks=[[0.6, 0.0], [0.0, 0.5]])
      >>> int(chosen), payment.round(4).tolist()
      (1, [0.0, 1.2])
    """
    check_bids(bids)
    _check_rates(clicks=clicks)
    xp, (bid, clicks) = _floats(bids, clicks)
    chex.assert_shape(clicks, (None, bid.shape[0]))
    if not clicks.shape[0]:
        raise ValueError("clicks: a menu without a slate")
    chosen = xp.argmax((bid[None] * clicks).sum(-1))
    change = bid[None] * (clicks - clicks[chosen][None])
    own = xp.eye(bid.shape[0], dtype=bool)[None]
    change_of_others = xp.where(own, 0.0, change[:, None, :]).sum(-1)  # [M, N]
    return chosen, xp.clip(change_of_others.max(0), 0.0, bid * clicks[chosen])


def myerson(bid_grid: ArrayLike, clicks: ArrayLike) -> Any:
    """Total payment that makes a bid truthful, `b x(b) - integral_0^b x(s) ds` (Myerson, 1981).

    Computed as `integral_0^b s dx(s)` by the trapezoidal rule: exact if x is piecewise linear, and
    a sum of positive terms where x rises. A jump counts at the middle of its interval; two equal
    grid points place it exactly. If x falls, the payment stays at least 0.

    Args:
      bid_grid: `[G]` currency per click, rising from 0 to the bid.
      clicks: `[G]` click rate of the ad at each bid, the others' fixed.

    Returns:
      Total payment at the last bid, currency per impression.

    Raises:
      ValueError: names a bid or a click rate that is negative, NaN or infinite; or the grid does
        not rise from 0.

    Examples:
      One slot of click rate 0.5 that a bid above 2 wins costs 2 * 0.5, whatever the bid:

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
        raise ValueError("bid_grid must rise from 0 to the bid, got no point")
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
    """Generalised second price among the ads shown, whatever their order in the slate.

    Args:
      bid: `[K]` currency per click.
      quality: `[K]` predicted click rate.
      is_ad: `[K]` bool.
      losing_score: best bid * quality of an ad not shown, 0 if none; it prices the last ad.

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
    """Clarke payment of each ad, per click: `b pctr - r`, with r of eq. 31, is its cost to others.

    Args:
      bid: `[K]` currency per click, 0 for organic items.
      pctr: `[K]` predicted click rate; without clicks the price is 0.
      cost: `[K]` what the ad's presence costs the others, currency per impression. Taken as such,
        not as a difference from the ad's own value, in which it drowns where the bid is large.

    Returns:
      `[K]` price per click.
    """
    return jnp.where(pctr > 0, jnp.clip(cost / jnp.maximum(pctr, _TINY), 0.0, bid), 0.0)


def slate_myerson(bid_grid: jax.Array, clicks: jax.Array) -> jax.Array:
    """Myerson payment of each ad, per click at its bid.

    Args:
      bid_grid: `[K, G]` currency per click, rising from 0 to the bid; all 0 for organic items.
      clicks: `[K, G]` click rate at each of these bids; without clicks at the last the price is 0.

    Returns:
      `[K]` price per click.
    """
    price = jax.vmap(myerson)(bid_grid, clicks) / jnp.maximum(clicks[:, -1], _TINY)
    return jnp.clip(price, 0.0, bid_grid[:, -1])


def with_reserve(
    price: jax.Array, bid: jax.Array, is_ad: jax.Array, reserve: chex.Numeric
) -> jax.Array:
    """Raises the prices of ads to a reserve, never above the bid; `[K]` currency per click."""
    return jnp.where(is_ad, jnp.minimum(jnp.maximum(price, reserve), bid), 0.0)
