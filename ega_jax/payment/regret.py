"""Regret of truthful advertisers, over re-runs of the whole allocation (paper eqs. 3, 4, 6).

A misreport changes the slate, and with it who is in it. With the slate held fixed, as (6) reads
literally, the least report would always be the best one, whatever the payment rule. Here every
report runs the allocation again. The outcomes do not depend on the payment network, so they are
tabulated once per session; the network is differentiated at truth and at every misreport.
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
    """What one report of one ad leads to."""

    bid: jax.Array  # [...] currency per click, as reported.
    clicks: jax.Array  # [...] pctr of the ad in the slate of this report; 0 where not in it.
    context: Context  # [...] of the ad in that slate; any finite values where `clicks` is 0.


@struct.dataclass
class Table:
    """Outcomes of the ads of slates, one per slot: at their true values and at misreports.

    The true value of an ad is its logged bid, `truth.bid`.
    """

    truth: Outcome  # [..., K]
    misreports: Outcome  # [..., K, J]
    where: jax.Array  # [..., K] bool, the slots that hold an ad.


def rerun(
    outcomes_of: Callable[[jax.Array, jax.Array], Any],
    bids: jax.Array,
    ads: jax.Array,
    reports: jax.Array,
) -> Any:
    """Runs the allocation of one request again for every report of every ad.

    Args:
      outcomes_of: the whole allocation under many bid vectors, which may share work,
        `(bids [R, N], ads [R]) -> Outcome [R]`, or another struct with `clicks`, of one ad for
        each vector.
      bids: `[N]` of all candidates, currency per click.
      ads: `[A]` int32 candidates that report, -1 for none.
      reports: `[A, J]` what they report, one at a time, currency per click.

    Returns:
      Outcomes `[A, J]`; `clicks` is 0 where there is no ad.
    """
    reporting = jnp.repeat(jnp.maximum(ads, 0), reports.shape[1])
    found = outcomes_of(with_reports(bids, ads, reports), reporting)
    outcome = jax.tree.map(lambda x: x.reshape(*reports.shape, *x.shape[1:]), found)
    there = (ads >= 0)[:, None]
    return dataclasses.replace(outcome, clicks=jnp.where(there, outcome.clicks, 0.0))


def with_reports(bids: jax.Array, ads: jax.Array, reports: jax.Array) -> jax.Array:
    """Bid vectors `[A * J, N]`: `bids [N]` with one report `[A, J]` of one ad `[A]` in each."""
    reporting = jnp.repeat(jnp.maximum(ads, 0), reports.shape[1])
    return jax.vmap(lambda ad, report: bids.at[ad].set(report))(reporting, reports.reshape(-1))


def tabulate(
    outcomes_of: Callable[[jax.Array, jax.Array], Outcome],
    bids: jax.Array,
    ads: jax.Array,
    reports: jax.Array,
) -> Table:
    """Tabulates one request: the outcome at true bids and at misreports of every ad.

    Args:
      outcomes_of: as in `rerun`.
      bids: `[N]` true bids of all candidates.
      ads: `[K]` int32 candidates in the slots of the truthful slate, -1 where no ad.
      reports: `[K, J]` misreports.

    Returns:
      The table, without batch axes.
    """
    truth = bids[jnp.maximum(ads, 0)][:, None]
    outcomes = rerun(outcomes_of, bids, ads, jnp.concatenate([truth, reports], axis=1))
    return Table(
        truth=jax.tree.map(lambda x: x[:, 0], outcomes),
        misreports=jax.tree.map(lambda x: x[:, 1:], outcomes),
        where=ads >= 0,
    )


def reports_of(table: Table) -> Outcome:
    """Outcomes `[..., K, 1 + J]` of all reports in a table, the truth first."""
    axis = table.where.ndim
    join = lambda truth, others: jnp.concatenate([jnp.expand_dims(truth, axis), others], axis)
    return jax.tree.map(join, table.truth, table.misreports)


def soft(outcome: Outcome) -> Outcome:
    """Counts exposure as clicks: a differentiable stand-in, for studies and never for reports."""
    present = outcome.clicks > 0
    return dataclasses.replace(outcome, clicks=jnp.where(present, outcome.context.exposure, 0.0))


def utility(value: jax.Array, clicks: jax.Array, price: jax.Array) -> jax.Array:
    """Utility of an ad (3) `(value - price) * clicks`, in currency; shapes broadcast."""
    return (value - price) * clicks


def regret(utility_truthful: jax.Array, utility_misreport: jax.Array) -> jax.Array:
    """What an ad loses by being truthful: `[...]` and `[..., J]` to `[...]`, at least 0.

    The best misreport is gathered, for the gradient of a maximum compares it with its arguments:
    these the compiler may compute once more with other rounding, and the gradient is then NaN.
    """
    best = jnp.argmax(utility_misreport, axis=-1, keepdims=True)
    lying = jnp.take_along_axis(utility_misreport, best, axis=-1)[..., 0]
    return jax.nn.relu(lying - utility_truthful)


def batch_of(table: Table) -> dict[str, jax.Array]:
    """The table as a flat dictionary, as batches are stored; `table_of` undoes it."""
    batch = {"where": table.where}
    for name, outcome in (("truth", table.truth), ("misreports", table.misreports)):
        fields = {"bid": outcome.bid, "clicks": outcome.clicks} | vars(outcome.context)
        batch |= {f"{name}_{field}": array for field, array in fields.items()}
    return batch


def table_of(batch: Mapping[str, jax.Array]) -> Table:
    """Picks the fields of a `Table` from a batch that may hold more."""

    def outcome(name: str) -> Outcome:
        fields = {field: batch[f"{name}_{field}"] for field in Context.__dataclass_fields__}
        return Outcome(batch[f"{name}_bid"], batch[f"{name}_clicks"], Context(**fields))

    return Table(outcome("truth"), outcome("misreports"), batch["where"])
