"""Measuring a trained system by the protocol, on sessions that all systems of a market share.

What is measured is kept in the system's folder, batch after batch: an interrupted command goes on
where it stopped, and other systems of the market are compared with it later.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ega_jax.auction.reserves import NO_RESERVES
from ega_jax.data.ad_logs import SPLITS, split_bounds
from ega_jax.data.market.logger import Logger
from ega_jax.evaluation.auction import Judged, judge_batch, scores
from ega_jax.evaluation.flops import each_alone, flops_per_request
from ega_jax.evaluation.records import OWN, ByJudge, Results, Served
from ega_jax.evaluation.serving import Judge, Outcomes, judges_of, served_along, served_batch
from ega_jax.evaluation.visits import Visits, visit_batch
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.requests import real_requests, real_rows, request_of
from ega_jax.setting import leaves
from ega_jax.training.checkpoints import read_metadata
from ega_jax.training.files import read_json, write_json
from ega_jax.training.mesh import fill_devices
from ega_jax.training.metrics import metrics_files, read_metrics
from ega_jax.training.tabulation import tabulated
from experiments.benchmarks.timing import latencies, percentiles
from experiments.common.runs import shared_phases, train_system, truth_of

SLATES_ONLY = "first_price"  # The rule that needs no second search, where prices do not matter.
FRONTIER: Mapping[str, tuple[float, ...]] = {  # Lever -> its settings, declared beforehand.
    "alpha": (0.6, 1.2, 2.4, 3.6, 5.0, 8.0),
    "beta": (0.0, 0.5, 2.0, 8.0, 16.0, 32.0),
    "kappa": (0.0, 1.0, 2.0, 4.0, 8.0, 16.0),
}
COMPILED_FROM = 512  # Sessions from which one call for all settings pays for compiling it.
LATENCY_LIMIT_S = 5.0
COUNTED = 16  # Requests whose FLOPs are counted.

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sessions:
    """The least numbers of sessions that measurements take, evenly spread; whole batches."""

    value: int  # Value, responses and ads, at the system's own levers and along each.
    rpm: int  # Revenue at the system's own prices.
    psi: int  # Regret: every report of every ad.


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of a system; each is made once, and read from the system's folder later."""

    run: AuctionTraining
    rule: str  # The payment rule.
    sessions: Sessions
    split: str = "test"
    other_judges: Mapping[str, Judge] = dataclasses.field(default_factory=dict)
    read: dict[int, list[Batch]] = dataclasses.field(default_factory=dict, init=False)

    @property
    def results(self) -> Results:
        """All measurements; those that are missing are made."""
        costs, psi = self.costs, self.psi
        judged = next(iter(psi.values()))
        return Results(
            **vars(self.served),
            psi={judge: scores(each, self.rule) for judge, each in psi.items()},
            psi_sessions=len(judged.value),
            frontier=self.frontier,
            costs=costs,
        )

    @property
    def served(self) -> Served:
        """What other systems of the market are compared with."""
        return Served(self.value, self.rpm)

    @property
    def value(self) -> ByJudge:
        """Outcomes of the system's slates by judge."""
        return self._served("value", self.sessions.value, SLATES_ONLY)

    @property
    def rpm(self) -> ByJudge:
        """Outcomes at the prices of the payment rule, by judge."""
        return self._served(f"rpm-{self.rule}", self.sessions.rpm, self.rule)

    @property
    def frontier(self) -> dict[tuple[str, float], ByJudge]:
        """Outcomes by judge at the system's own levers, and along each that has an effect."""
        followed, own = followed_levers(self.run), vars(self.run.levers)
        points = [(lever, x) for lever in FRONTIER for x in FRONTIER[lever] if lever in followed]
        others = [(lever, x) for lever, x in points if x != own[lever]]
        found = dict(zip(others, self._along(others), strict=True))
        return {OWN: self.value} | {point: found.get(point, self.value) for point in points}

    @property
    def visits(self) -> Visits:
        """The slates at the prices of the payment rule, with all ads that were for sale."""
        folder, books = self.run.pretraining.folder, self.run.dataset.books
        logger = Logger.load(folder) if (folder / "logger.npz").exists() else None
        judges = judges_of(truth_of(self.run))

        def visited(batch: Batch) -> dict[str, Any]:
            found = visit_batch(self.run.mechanism, batch, books, judges, self.rule, logger)
            return dict(vars(found))

        return Visits(**self._table(f"visits-{self.rule}", self.sessions.rpm, visited))

    @property
    def psi(self) -> dict[str, Judged]:
        """Reports and their outcomes by judge; they hold for every payment rule."""
        truth, losing = truth_of(self.run), self.run.settings.auction.num_losing

        def judged(batch: Batch) -> dict[str, Any]:
            mechanism = self.run.mechanism
            found = judge_batch(mechanism, mechanism.levers, batch, truth, losing)
            return {judge: dataclasses.asdict(each) for judge, each in found.items()}

        table = self._table("psi", self.sessions.psi, judged, num_losing=losing)
        return {judge: Judged(**columns) for judge, columns in table.items()}

    @property
    def costs(self) -> dict[str, float]:
        """Of a request alone: the median of `ms`, and the mean of `flops`, over some requests."""
        path = self.run.folder / "measured" / f"costs-{self.rule}{self._mark}.json"
        if not path.exists():
            mechanism = train_system(self.run)
            found = self.requests(COUNTED)
            some = request_of({name: rows[:COUNTED] for name, rows in found.items()})
            each = itertools.cycle(each_alone(some))
            times = latencies(lambda: mechanism.allocate(next(each), self.rule), LATENCY_LIMIT_S)
            flops = flops_per_request(mechanism, some, self.rule).mean()
            write_json(path, {"ms": percentiles(times)["p50_ms"], "flops": float(flops)})
        return read_json(path)

    @property
    def seconds(self) -> dict[str, float]:
        """What each phase of training and each measurement took, all processes together."""
        workdir, folder = self.run.pretraining.workdir, self.run.folder
        places = (*shared_phases(workdir), folder)
        logs = [path for place in places for path in metrics_files(place)]
        logged = {path.stem: read_metrics(path) for path in logs}  # Nothing if it failed at once.
        spent = {phase: each[-1]["elapsed_seconds"] for phase, each in logged.items() if each}
        tables = [path.parent for path in sorted(folder.glob("*/*/metadata"))]
        tables = [path for path in tables if path.parent.name in ("tables", "measured")]
        return spent | {path.name: read_metadata(path)["seconds"] for path in tables}

    @property
    def samples(self) -> dict[str, int]:
        """The samples that each trained model has seen: steps times rows of a batch.

        Those of `alignment`, of `cga` and of `cross_dqn` are requests of reinforcement.
        """
        fields = {leaf.name: leaf.value for leaf in leaves(self.run.settings)}
        groups = [name.removesuffix(".num_steps") for name in fields if name.endswith(".num_steps")]
        seen = {
            group.split(".")[-1]: fields[f"{group}.num_steps"] * fields[f"{group}.batch_size"]
            for group in groups
        }
        seen |= dict.fromkeys(("generator", "joint"), seen["training"])  # Phases of that group.
        trained = {name.removesuffix("_rate").removesuffix("_threshold") for name in self.seconds}
        return {phase: number for phase, number in seen.items() if phase in trained}

    @property
    def _judges(self) -> dict[str, Judge]:
        """The judges of the slates by name."""
        return judges_of(truth_of(self.run)) | dict(self.other_judges)

    @property
    def _mark(self) -> str:
        """What marks measurements with reserves or smoothed bids."""
        reserves = self.run.settings.auction.reserves
        smoothing = self.run.settings.allocation.bid_smoothing
        marks = f"-reserves-{reserves}" if reserves != NO_RESERVES else ""
        return marks + (f"-smoothing-{smoothing:g}" if smoothing else "")

    def _served(self, part: str, num_sessions: int, rule: str, **levers: float) -> ByJudge:
        """Outcomes of some sessions by judge, under a rule and changed levers."""
        judges = self._judges

        def outcomes(batch: Batch) -> dict[str, Any]:
            found = served_batch(self.run.mechanism, batch, judges, rule, **levers)
            return {judge: dict(vars(each)) for judge, each in found.items()}

        table = self._table(part, num_sessions, outcomes)
        return {judge: Outcomes(**columns) for judge, columns in table.items()}

    def _along(self, points: Sequence[tuple[str, float]]) -> list[ByJudge]:
        """Outcomes by judge at several values of levers, one lever moved at a time."""
        judges, num_sessions, rule = self._judges, self.sessions.value, SLATES_ONLY
        if not points or num_sessions < COMPILED_FROM:
            return [
                self._served(f"value-{lever}-{value:g}", num_sessions, rule, **{lever: value})
                for lever, value in points
            ]

        def outcomes(batch: Batch) -> dict[str, Any]:
            settings = [{lever: value} for lever, value in points]
            found = served_along(self.run.mechanism, batch, judges, rule, settings)
            return {
                str(n): {judge: dict(vars(each)) for judge, each in point.items()}
                for n, point in enumerate(found)
            }

        part = "-".join(["value", *(f"{lever}-{value:g}" for lever, value in points)])
        table = self._table(part, num_sessions, outcomes, f"frontier of {len(points)} points")
        return [
            {judge: Outcomes(**columns) for judge, columns in table[str(n)].items()}
            for n in range(len(points))
        ]

    def _table(
        self,
        part: str,
        num_sessions: int,
        rows_of: Callable[[Batch], dict[str, Any]],
        title: str = "",
        **made_of: Any,
    ) -> Mapping[str, Any]:
        """What `rows_of` tells of the batches of some sessions; progress shows title or part."""
        batches = self.batches(num_sessions)
        name, size = f"{self.run.name}{self._mark}: {title or part}", len(real_rows(batches[0]))
        rows_of_batch = lambda number: rows_of(batches[number])
        made_of |= vars(self.run.dataset.summary)  # Another log has other counts.
        path = self.path(part, num_sessions)
        return tabulated(path, len(batches), rows_of_batch, size, name, made_of)

    def path(self, part: str, num_sessions: int) -> Path:
        """Where a measurement is kept."""
        name = f"{part}{self._mark}-{self.split}-{num_sessions}"
        return self.run.folder / "measured" / name

    def requests(self, num_sessions: int) -> Batch:
        """The requests of `batches` together."""
        real = [real_requests(batch) for batch in self.batches(num_sessions)]
        return {name: np.concatenate([batch[name] for batch in real]) for name in real[0]}

    def batches(self, num_sessions: int) -> list[Batch]:
        """At least so many sessions of the split, or all it has; read once."""
        if num_sessions not in self.read:
            run, size = self.run, self.run.settings.auction.batch_size
            bounds = split_bounds(run.dataset.fractions, run.dataset.summary.num_rows)
            there = -(-int(np.diff(bounds)[SPLITS.index(self.split)]) // size)
            wanted = -(-num_sessions // size)
            stride = max(there // wanted, 1)
            sessions = run.sessions(self.split, size * -(-there // stride), size)
            self.read[num_sessions] = list(fill_devices(sessions))
        return self.read[num_sessions]


def followed_levers(run: AuctionTraining) -> set[str]:
    """The levers that change the slates a system serves."""
    levers = ("alpha", "beta") * weighs_tokens(run) + ("kappa",) * run.system.weighs_clicks
    return set(levers)


def weighs_tokens(run: AuctionTraining) -> bool:
    """Returns whether a system's search uses token bids."""
    return run.system.weighs_tokens and not run.settings.allocation.bid_free
