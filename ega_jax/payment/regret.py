"""Regret of truthful advertisers, from re-runs of the whole allocation (paper eqs. 3, 4, 6).

A misreport changes the slate and the ads in it. If the slate were fixed, as (6) reads literally,
the lowest report would be optimal under every payment rule. Here the allocation is run again for
each report. Outcomes do not depend on the payment network, so they are tabulated once per session.
The network is differentiated at the true value and at every misreport.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.payment.network import Context


@struct.dataclass
class Outcome:
    """The outcome of one report of one ad."""

    bid: jax.Array  # [...] the report, currency per click.
    clicks: jax.Array  # [...] pctr of the ad in the resulting slate; 0 if it is not shown.
    context: Context  # [...] of the ad in that slate; arbitrary finite values if `clicks` is 0.


@struct.dataclass
class Table:
    """Outcomes of the ads of slates, by slot, at their true values and at misreports.

    The true value of an ad is its logged bid, `truth.bid`.
    """

    truth: Outcome  # [..., K]
    misreports: Outcome  # [..., K, J]
    where: jax.Array  # [..., K] bool, whether the slot holds an ad.


Rerun = Callable[[jax.Array, jax.Array], Any]
"""Runs the allocation once per report: `(ads [R], bids [R]) -> Outcome [R]` of the ads that report.

It may return another struct with `clicks`.
"""


def rerun(outcomes_of: Rerun, ads: jax.Array, reports: jax.Array) -> Any:
    """Runs the allocation of one request again for each report of each ad.

    Args:
      outcomes_of: runs the allocation for reports of single ads.
      ads: `[A]` int32 candidates that report, -1 for none.
      reports: `[A, J]` their reports, one at a time, currency per click.

    Returns:
      Outcomes `[A, J]`; `clicks` is 0 for ad -1.
    """
    found = outcomes_of(jnp.repeat(ads, reports.shape[1]), reports.reshape(-1))
    outcome = jax.tree.map(lambda x: x.reshape(*reports.shape, *x.shape[1:]), found)
    there = (ads >= 0)[:, None]
    return dataclasses.replace(outcome, clicks=jnp.where(there, outcome.clicks, 0.0))


def tabulate(outcomes_of: Rerun, ads: jax.Array, values: jax.Array, reports: jax.Array) -> Table:
    """Tabulates the outcomes of one request's ads at their true values and at misreports.

    Args:
      outcomes_of: runs the allocation for reports of single ads.
      ads: `[K]` int32 candidates in the slots of the truthful slate, -1 in slots without ad.
      values: `[K]` their true values of a click, in currency.
      reports: `[K, J]` misreports.

    Returns:
      The table, without batch axes.
    """
    outcomes = rerun(outcomes_of, ads, jnp.concatenate([values[:, None], reports], axis=1))
    return Table(
        truth=jax.tree.map(lambda x: x[:, 0], outcomes),
        misreports=jax.tree.map(lambda x: x[:, 1:], outcomes),
        where=ads >= 0,
    )


def reports_of(table: Table) -> Outcome:
    """Outcomes `[..., K, 1 + J]` of all reports in a table, the truthful one first."""
    axis = table.where.ndim
    join = lambda truth, others: jnp.concatenate([jnp.expand_dims(truth, axis), others], axis)
    return jax.tree.map(join, table.truth, table.misreports)


def soft(outcome: Outcome) -> Outcome:
    """Replaces clicks by exposure: a differentiable surrogate for training, not for evaluation."""
    present = outcome.clicks > 0
    return dataclasses.replace(outcome, clicks=jnp.where(present, outcome.context.exposure, 0.0))


def utility(value: jax.Array, clicks: jax.Array, price: jax.Array) -> jax.Array:
    """Utility of an ad (3) `(value - price) * clicks`, in currency; shapes broadcast."""
    return (value - price) * clicks


def regret(utility_truthful: jax.Array, utility_misreport: jax.Array) -> jax.Array:
    """Regret of an ad, its gain from the best misreport: `[...]` and `[..., J]` to `[...]`.

    Regret is at least 0. The best misreport is selected by argmax and gather, not by `max`: the
    gradient of `max` compares the maximum with its arguments, which the compiler may recompute
    with different rounding, and then is NaN.
    """
    best = jnp.argmax(utility_misreport, axis=-1, keepdims=True)
    lying = jnp.take_along_axis(utility_misreport, best, axis=-1)[..., 0]
    return jax.nn.relu(lying - utility_truthful)


def batch_of(table: Table) -> dict[str, jax.Array]:
    """Flattens a table to a dictionary, the storage format; `table_of` is the inverse."""
    batch = {"where": table.where}
    for name, outcome in (("truth", table.truth), ("misreports", table.misreports)):
        fields = {"bid": outcome.bid, "clicks": outcome.clicks} | vars(outcome.context)
        batch |= {f"{name}_{field}": array for field, array in fields.items()}
    return batch


def table_of(batch: Mapping[str, jax.Array]) -> Table:
    """Builds a `Table` from a flat batch, which may hold more fields."""

    def outcome(name: str) -> Outcome:
        fields = {field: batch[f"{name}_{field}"] for field in Context.__dataclass_fields__}
        return Outcome(batch[f"{name}_bid"], batch[f"{name}_clicks"], Context(**fields))

    return Table(outcome("truth"), outcome("misreports"), batch["where"])
