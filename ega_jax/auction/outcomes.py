"""Outcomes of the reports of a request's ads, to train the payment network (sec. 4.4.2)."""

import chex
import jax
import jax.numpy as jnp

from ega_jax.auction.counterfactuals import clicks_of, counterfactuals, for_every_slot
from ega_jax.auction.pricing import PricingConfig, context_of
from ega_jax.auction.system import Levers, System
from ega_jax.generation.reports import Report
from ega_jax.payment.regret import Outcome, Table, tabulate
from ega_jax.types import AnyRequest


def tabulate_request(
    system: System,
    pricing: PricingConfig,
    request: AnyRequest,
    levers: Levers,
    key: chex.PRNGKey,
    num_reports: int,
) -> Table:
    """Outcomes of one request's ads at their true values and at sampled misreports (sec. 4.4.2).

    Args:
      system: the system that allocates.
      pricing: sizes of the payment network's inputs.
      request: one request; its bids are treated as the true values.
      levers: run-time settings.
      key: PRNG key to sample misreports.
      num_reports: `J` misreports per ad: its true value times a factor that is drawn uniformly from
        each of the `J` equal parts of [0, 2).

    Returns:
      The table, `[K]` and `[K, J]`.
    """
    prepared = system.prepare(request, levers)
    truthful, menu = system.allocate(prepared)
    ads, each = truthful.ads, num_reports + 1
    spread = jnp.arange(num_reports)[None] + jax.random.uniform(key, (ads.ad.size, num_reports))
    reports = ads.bid[:, None] * spread * (2.0 / num_reports)

    def outcomes_of(reporting: jax.Array, bids: jax.Array) -> Outcome:
        beside = Report(reporting, bids)
        known, shown, menus = counterfactuals(system, pricing.probed, prepared, ads, menu, beside)
        of_each = jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), known)
        outcome = lambda *x: _outcome(levers, *x)
        return jax.vmap(outcome)(shown, menus, bids, reporting, of_each)

    return tabulate(outcomes_of, ads.ad, ads.bid, reports)


def _outcome(levers: Levers, allocation, menu, bid, ad, known) -> Outcome:
    """The outcome of an allocation for one ad."""
    slot = jnp.argmax(allocation.candidate == ad)
    at_every_slot = for_every_slot(known, allocation.candidate.shape[0])
    context = context_of(levers, allocation, menu, at_every_slot)
    return Outcome(
        bid=bid,
        clicks=clicks_of(allocation, ad),
        context=jax.tree.map(lambda x: x[slot], context),
    )
