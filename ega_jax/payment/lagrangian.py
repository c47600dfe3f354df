"""Training of the payment network: revenue under low regret (paper sec. 4.4.2, eqs. 33-35).

The objective is an augmented Lagrangian with one multiplier per slot. A batch's revenue and regret
are divided by its welfare, the sum of bid times clicks. So multipliers and rho are dimensionless
and do not depend on currency or click rate.
"""

import dataclasses
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.errors import UserError
from ega_jax.payment import network, regret
from ega_jax.payment.network import PaymentConfig
from ega_jax.payment.regret import Table
from ega_jax.setting import setting
from ega_jax.types import LossFn, Metrics, Params

REGRETS = ("rerun", "soft")


@dataclasses.dataclass(frozen=True)
class LagrangianConfig:
    """Schedule of the multipliers.

    At a multiplier of 1, a price above the truthful one gains as much revenue as it costs in
    regret; below 1, training converges to first prices. If an ad's clicks rise smoothly with its
    bid, regret is of second order in the price, and prices exceed the truthful ones by a share of
    about 1 / multiplier. So the default starts well above 1.

    With `every_report`, each of the 1 + J reports of an ad is treated as the true value of one more
    advertiser, who may misreport any of them. The network then learns prices over the whole range
    of bids, not only at logged bids, from 1 + J times the data. It maximises the revenue of bids
    distributed as the reports are.

    Raises:
      UserError: `regret` is not one of `REGRETS`.
    """

    rho: float = setting(10.0, above=0)  # Initial penalty of the squared regret.
    rho_growth: float = setting(1.0, above=0)  # Factor per update of the multipliers.
    rho_max: float = setting(1000.0, above=0)
    multiplier_init: float = setting(20.0, at_least=0)
    update_every: int = setting(10, at_least=1)  # Steps between updates of the multipliers.
    regret: str = setting("rerun", choices=REGRETS)  # "soft" counts exposure as clicks.
    sampled: int = setting(0, at_least=0)  # Misreports sampled per step from the table; 0: all.
    every_report: bool = setting(True)  # Each report is the true value of one more advertiser.

    def __post_init__(self):
        if self.regret not in REGRETS:
            raise UserError(f"regret {self.regret!r} is not one of {', '.join(REGRETS)}")


@struct.dataclass
class LagrangianState:
    """The dual variables, stored as `variables` of the train state."""

    multipliers: jax.Array  # [K] float32, lambda of each slot; never decreases.
    rho: jax.Array  # [] float32.
    step: jax.Array  # [] int32, steps taken.


def start(config: LagrangianConfig, num_slots: int) -> LagrangianState:
    """Returns the state before the first step."""
    return LagrangianState(
        multipliers=jnp.full(num_slots, config.multiplier_init, jnp.float32),
        rho=jnp.asarray(config.rho, jnp.float32),
        step=jnp.zeros((), jnp.int32),
    )


def payment_loss(payment_config: PaymentConfig, config: LagrangianConfig) -> LossFn:
    """Makes the loss of payment training (33)-(35).

    Args:
      payment_config: head and sizes of the payment network.
      config: schedule of the multipliers.

    Returns:
      `loss(params, state, batch, key) -> (loss, (metrics, new state))`; `batch` holds a table of
      outcomes with one leading batch axis, in the format of `regret.table_of`. The loss is
      `-(revenue - sum_k lambda_k rgt_k - rho / 2 sum_k rgt_k^2)` in units of welfare. Metrics are
      in currency per request, except `multiplier`, `rho` and `regret_over_utility`.
    """

    def loss(
        params: Params, state: LagrangianState, batch: Mapping[str, jax.Array], key: chex.PRNGKey
    ):
        table = _counted(config, _sampled(config, regret.table_of(batch), key))
        settled = settle(params, payment_config, table, config.every_report)
        totals = {name: amount.mean((0, -1)) for name, amount in settled.items()}  # [K]
        welfare = totals["welfare"].sum()
        unit = jnp.where(welfare > 0, welfare, 1.0)
        regrets = totals["regret"] / unit
        objective = (
            totals["revenue"].sum() / unit
            - jnp.sum(state.multipliers * regrets)
            - 0.5 * state.rho * jnp.sum(regrets**2)
        )
        return -objective, (_metrics(settled, state), _updated(config, state, regrets))

    return loss


def settle(
    params: Params, config: PaymentConfig, table: Table, every_report: bool = False
) -> dict[str, jax.Array]:
    """Computes payments and regret of all ads of a table.

    If a threshold exceeds the bid, the cap at the bid has zero gradient, and the threshold would
    stay there. The straight-through estimator lets regret lower it (see `network.price`).

    Args:
      params: the payment network's parameters.
      config: head and sizes of the payment network.
      table: outcomes of ads `[..., K]` and of their misreports `[..., K, J]`.
      every_report: whether each report is treated as the true value of one more advertiser.

    Returns:
      `welfare` (bid times clicks, the upper bound of revenue), `revenue`, `utility` and `regret`,
      all `[..., K, V]` in currency, 0 in slots without ad. `V` is 1, or 1 + J with `every_report`;
      entry 0 is the advertiser with the logged bid.
    """
    reports = regret.reports_of(table)
    price, blamed = (
        network.price(params, config, reports.context, reports.bid, straight_through)
        for straight_through in (False, True)
    )
    advertisers = slice(None) if every_report else slice(1)
    value, clicks = reports.bid[..., advertisers], reports.clicks[..., advertisers]
    gain = lambda price: regret.utility(value, clicks, price[..., advertisers])
    lying = regret.utility(value[..., None], reports.clicks[..., None, :], price[..., None, :])
    amounts = {
        "welfare": value * clicks,
        "revenue": price[..., advertisers] * clicks,
        "utility": gain(price),
        "regret": regret.regret(gain(blamed), lying),
    }
    where = table.where[..., None]
    return {name: jnp.where(where, amount, 0.0) for name, amount in amounts.items()}


def _counted(config: LagrangianConfig, table: Table) -> Table:
    """Replaces clicks by exposure if the regret is "soft"."""
    if config.regret == "rerun":
        return table
    return dataclasses.replace(
        table, truth=regret.soft(table.truth), misreports=regret.soft(table.misreports)
    )


def _sampled(config: LagrangianConfig, table: Table, key: chex.PRNGKey) -> Table:
    """Samples misreports without replacement, the same ones for all ads of the batch."""
    num_reports = table.misreports.bid.shape[-1]
    if not config.sampled:
        return table
    if config.sampled > num_reports:
        raise ValueError(f"sampled={config.sampled}, but the table has {num_reports} misreports")
    drawn = jax.random.choice(key, num_reports, (config.sampled,), replace=False)
    axis = table.misreports.bid.ndim - 1
    return dataclasses.replace(
        table, misreports=jax.tree.map(lambda x: jnp.take(x, drawn, axis=axis), table.misreports)
    )


def _updated(
    config: LagrangianConfig, state: LagrangianState, regrets: jax.Array
) -> LagrangianState:
    """Updates the multipliers every `update_every` steps: `lambda += rho * rgt` (35)."""
    step = state.step + 1
    due = step % config.update_every == 0
    raised = state.multipliers + state.rho * regrets
    grown = jnp.minimum(state.rho * config.rho_growth, config.rho_max)
    return LagrangianState(
        multipliers=jnp.where(due, raised, state.multipliers),
        rho=jnp.where(due, grown, state.rho),
        step=step,
    )


def _metrics(settled: Mapping[str, jax.Array], state: LagrangianState) -> Metrics:
    """Metrics to log, over the advertisers whose true values are the logged bids."""
    totals = {name: amount[..., 0].mean(0) for name, amount in settled.items()}
    sums = {name: total.sum() for name, total in totals.items()}
    positive = sums["utility"] > 0
    return sums | {
        "regret_over_utility": jnp.where(
            positive, sums["regret"] / jnp.where(positive, sums["utility"], 1.0), 0.0
        ),
        "multiplier": state.multipliers.mean(),
        "rho": state.rho,
        **{f"regret_slot_{k}": total for k, total in enumerate(totals["regret"])},
    }
