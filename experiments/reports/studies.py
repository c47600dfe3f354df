"""What a report measures of one system, on a few hundred test sessions.

Measurements are kept in the system's folder and read again by a later report.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ega_jax.data.item_rules import open_pois
from ega_jax.data.texts import read_texts
from ega_jax.evaluation.advertisers import Accounts, accounts
from ega_jax.evaluation.landscape import Landscape, Seller, landscape
from ega_jax.evaluation.serving import judges_of
from ega_jax.evaluation.visits import Visits
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.requests import request_of
from ega_jax.reporting.overview import RunFacts
from ega_jax.reporting.slates import ExplainedSlate
from ega_jax.reporting.systems import Measurements
from ega_jax.training.files import read_json, write_json
from ega_jax.training.tabulation import tabulated
from experiments.common.measuring import Measured, Sessions
from experiments.common.runs import kept_judged, truth_of

EXPLAINED = 3  # Slates.
LANDSCAPES = 4  # Advertisers whose bid landscapes are drawn.
LANDSCAPE_REQUESTS = 32  # Most requests that are served at each of their bids.


@dataclasses.dataclass(frozen=True)
class Study:
    """The measurements of one system; each is made once."""

    run: AuctionTraining
    num_sessions: int  # At least so many are served.

    @property
    def rule(self) -> str:
        """The system's payment rule."""
        return self.run.settings.auction.rule

    @property
    def facts(self) -> RunFacts:
        """How it was trained."""
        known, later = self._under(self.rule), self.run.folder / "measured"
        spent = {name: each for name, each in known.seconds.items() if not (later / name).exists()}
        return RunFacts(self.run.settings.auction.system, self.rule, spent, known.samples)

    @functools.cached_property
    def measurements(self) -> Measurements:
        """Outcomes under every payment rule, regret and frontier."""
        own = self._under(self.rule)
        rules = self.run.pricing_config.rules
        by_rule = {rule: self._under(rule).rpm for rule in rules}
        regret = kept_judged(self.run) or own.psi
        return Measurements(self.rule, by_rule, regret, own.frontier)

    @functools.cached_property
    def visits(self) -> Visits:
        """The slates served, and the fates of all ads for sale."""
        return self._under(self.rule).visits

    @functools.cached_property
    def accounts(self) -> Accounts:
        """What each advertiser got."""
        return accounts(self.visits, self.run.dataset.summary.num_items)

    @functools.cached_property
    def landscapes(self) -> list[Landscape]:
        """The bid landscapes of the advertisers that spend most."""
        pois = self.accounts.by_spend()[:LANDSCAPES].tolist()
        if not pois:
            return []
        books, reserves = self.run.dataset.books, self.run.reserves
        ledger = self.run.ledger(self.run.levers, reserve=reserves)
        size = self.run.settings.auction.batch_size
        seller = Seller(self.run.mechanism, books, ledger, size)
        judge = list(judges_of(truth_of(self.run)).values())[-1]

        def rows_of(number: int) -> dict[str, Any]:
            found = landscape(seller, pois[number], self._offering(pois[number]), judge)
            return {name: np.asarray(value)[None] for name, value in vars(found).items()}

        path = self._under(self.rule).path(f"landscapes-{self.rule}", self.num_sessions)
        made_of = {"pois": pois} | vars(self.run.dataset.summary)
        title = f"{self.run.name}: bid landscapes"
        table = tabulated(path, len(pois), rows_of, 1, title, made_of)
        rows = [{name: column[row] for name, column in table.items()} for row in range(len(pois))]
        return [
            Landscape(**row | {"poi": int(row["poi"]), "requests": int(row["requests"])})
            for row in rows
        ]

    @functools.cached_property
    def slates(self) -> list[ExplainedSlate]:
        """A few slates, explained; of sessions that are spread evenly."""
        own = self._under(self.rule)
        path = own.path(f"explained-{self.rule}", self.num_sessions) / "slates.json"
        log = vars(self.run.dataset.summary)
        if not path.exists() or read_json(path).get("log") != log:
            batches = own.batches(self.num_sessions)
            chosen = batches[:: -(-len(batches) // EXPLAINED)]
            write_json(path, {"log": log, "slates": [self._explained(batch) for batch in chosen]})
        return [ExplainedSlate(**slate) for slate in read_json(path)["slates"]]

    def _explained(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The slate of the first session of a batch, as JSON."""
        alone = {name: np.asarray(x)[:1] for name, x in batch.items()}  # Others may be blank.
        history = alone["history_poi"][0]
        return {
            "session": int(batch["session"][0]),
            "rule": self.rule,
            "history": history[history >= 0].tolist(),
            "slots": self.run.mechanism.explain(request_of(alone)).to_dict(),
        }

    def _under(self, rule: str) -> Measured:
        """The measurements under a payment rule."""
        own = Sessions(
            value=max(self.num_sessions // 2, 1),
            rpm=self.num_sessions,
            psi=self.run.settings.auction.num_sessions,
        )
        return Measured(self.run, rule, own)

    def _offering(self, poi: int) -> dict[str, np.ndarray]:
        """Requests served in which an advertiser's ad was for sale, spread evenly."""
        rows = np.flatnonzero((self.visits.ad == poi).any(axis=1))
        rows = rows[:: -(-len(rows) // LANDSCAPE_REQUESTS)]
        requests = self._under(self.rule).requests(self.num_sessions)
        return {name: x[rows] for name, x in requests.items()}


def titles_of(run: AuctionTraining) -> list[str]:
    """What each POI is called: its title, with its number if others have the same title."""
    titles = read_texts(open_pois(run.pretraining.folder), "title")
    count = collections.Counter(titles)
    number = lambda title, poi: f"{title} ({poi})" if count[title] > 1 else title
    return [number(title, poi) if title else f"POI {poi}" for poi, title in enumerate(titles)]
