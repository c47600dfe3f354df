"""A market of the tables: its systems, what they measured there, and their records."""

import dataclasses
import functools
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

import ega_jax
from ega_jax.auction.reserves import NO_RESERVES
from ega_jax.baselines.settings import Settings
from ega_jax.errors import UserError
from ega_jax.evaluation.auction import systems
from ega_jax.evaluation.records import OTHERS, Record, record_of, write_record
from ega_jax.evaluation.report import write_results
from ega_jax.phases.auction import AuctionTraining
from ega_jax.setting import SYSTEM, leaves
from ega_jax.systems import compared
from ega_jax.training.files import read_json
from experiments.benchmarks.devices import description
from experiments.common.measuring import SLATES_ONLY, Measured, Sessions
from experiments.common.runs import changed, open_system, pretrained
from experiments.common.workdirs import PATHS

TUNING_MARKET = 100  # No table uses it.
# What a row may change with the models of another system, and what stands for no change.
MEASURED = {
    "auction.rule": SLATES_ONLY,
    "auction.reserves": NO_RESERVES,
    "allocation.bid_smoothing": 0.0,
}
SHARED = ("tokenizers", "reward")  # What systems with a pre-training of their own share.


@dataclasses.dataclass(frozen=True)
class Market:
    """One market with its log, a training seed, and all systems on them.

    Attributes:
      number: seeds the market, its log and all training.
      settings: of the tables; the market's own seeds are set here.
      root: the tables' workdir, which holds the workdirs of all markets.
      results: the folder of the tables.
      sessions: sizes of the measurements.
    """

    number: int
    settings: Settings
    root: Path
    results: Path
    sessions: Sessions

    @property
    def workdir(self) -> Path:
        """The workdir that systems of the same pre-training share."""
        return self.root / f"market-{self.number}"

    def record_path(self, name: str) -> Path:
        """The record of a run on this market."""
        return self.results / "runs" / f"{self.settings.name}-{self.number}-{name}.json"

    def state(self, name: str) -> str:
        """Whether a run is recorded: "done", "failed", or "" if something is left to measure.

        Raises:
          UserError: its record is of other settings.
        """
        record = self._record(name)
        if "failed" in record:
            return "failed"
        known = next(iter(record.get("lifts", {}).values()), {})
        compared = all(f"value_vs_{other}" in known for other in self._others(name))
        return "done" if record and compared else ""

    def _record(self, name: str) -> Record:
        """The record of a run, empty if there is none; see `state`."""
        path = self.record_path(name)
        if not path.exists():
            return {}
        return read_own_record(path, self.asked(compared()[name]))

    def asked(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """What identifies a record: data, numbers of sessions, and the settings with changes."""
        own = changed(self.settings, self._seeds | dict(changes))
        free = set(own.free(SYSTEM)) - set(MEASURED) | set(PATHS)
        config = {leaf.name: leaf.value for leaf in leaves(own) if leaf.name not in free}
        asked = {
            "data": kind_of(self.settings),
            "asked": dataclasses.asdict(self.sessions),
            "config": config,
        }
        return json.loads(json.dumps(asked))

    @property
    def _seeds(self) -> dict[str, Any]:
        return {"seed": self.number, "data.market.seed": self.number}

    def _others(self, name: str) -> list[str]:
        """The systems that a run is compared with: recorded, and measured in this workdir."""

        def is_here(other: str) -> bool:
            workdir, trained_as = self.folders_of(other)
            measured = self.root / workdir / "systems" / trained_as / "measured"
            return measured.is_dir() and "means" in self._record(other)

        return [other for other in OTHERS if other != name and is_here(other)]

    def measure(self, name: str) -> None:
        """Trains and measures a system, as far as that is not done, and writes its record."""
        own = self._measured(name)
        others = {other: self._measured(other).served for other in self._others(name)}
        found = {"rule": own.rule} | record_of(own.results, others) | {"seconds": own.seconds}
        found |= {"samples": own.samples}
        # results.json has no name for what other rows found with the models of a system.
        if self._measured_with(name) == self._measured_with(own.run.name):
            judged = systems(own.psi, own.run.name, own.run.settings.auction.rule)
            write_results(own.run.pretraining.workdir, {"systems": judged})
        self._write(name, found)

    def fail(self, name: str, reason: str) -> None:
        """Records that a run has failed."""
        self._write(name, {"failed": reason})

    def _write(self, name: str, found: Mapping[str, Any]) -> None:
        run = {"system": name, "market": self.number} | self.asked(compared()[name])
        write_record(self.record_path(name), run | dict(found) | {"manifest": manifest()})

    def _measured(self, name: str) -> Measured:
        rule = self.settings.changed(compared()[name]).auction.rule
        return Measured(self._open(name), rule, self.sessions)

    def _open(self, name: str) -> AuctionTraining:
        """The training of a compared system, measured with its own reserves and smoothing.

        They are set in memory alone: the folder keeps the settings that it was trained with.
        """
        workdir, trained_as = self.folders_of(name)
        run = self.open(compared()[trained_as], workdir, f"systems/{trained_as}")
        own = self._measured_with(name)
        if own == self._measured_with(trained_as):
            return run
        _ = run.mechanism  # Trains what is missing, with the settings of the models' own system.
        pretraining = dataclasses.replace(run.pretraining, settings=run.settings.changed(own))
        return dataclasses.replace(run, pretraining=pretraining)

    def _measured_with(self, name: str) -> dict[str, Any]:
        """The settings of a row that may differ from those of the system with its models."""
        own = self.settings.changed(compared()[name])
        fields = {leaf.name: leaf.value for leaf in leaves(own)}
        return {field: fields[field] for field in MEASURED if field != "auction.rule"}

    def folders_of(self, name: str) -> tuple[str, str]:
        """Returns the names of a run's workdir and system folder.

        A system with another pre-training has a workdir of its own. A system that differs from
        another one at most in `MEASURED` is measured with that one's models.
        """
        changes = compared()
        trained = {other: self.settings.changed({**x, **MEASURED}) for other, x in changes.items()}
        trained_as = next(other for other in changes if trained[other] == trained[name])
        own = f"-{trained_as}" * changes_pretraining(changes[trained_as])
        return self.workdir.name + own, trained_as

    def open(self, changes: Mapping[str, Any], workdir: str, place: str) -> AuctionTraining:
        """Returns the training of a system, whose workdir gets what the market has trained.

        Args:
          changes: the settings in which the system differs from the market's.
          workdir: its workdir in `root`.
          place: its folder in the workdir.
        """
        folder = self.root / workdir
        own = changed(self.settings, self._seeds | dict(changes))
        if folder != self.workdir:
            shared = changed(self.settings, self._seeds)
            _ = pretrained(shared, self.workdir)  # Makes what the market's systems share.
            log = own.data.path or str(self.workdir / "data")
            own = own.changed({"data.path": log})
            self._share(folder)
        return open_system(pretrained(own, folder), folder / place)

    def _share(self, folder: Path) -> None:
        """Copies what a workdir with another pre-training has in common with the market's."""
        for part in SHARED:
            if (self.workdir / part).is_dir() and not (folder / part).exists():
                partial = folder / f".{part}.partial"  # A partial copy is made again.
                shutil.copytree(self.workdir / part, partial, dirs_exist_ok=True)
                partial.rename(folder / part)


def kind_of(settings: Settings) -> dict[str, Any]:
    """Returns what the markets of one table have in common, as records name it."""
    market, log = settings.data.market, settings.data.path
    size = {"size": market.size, "num_slots": market.num_slots, "book": market.book}
    source = {"log": log} if log else {"world": market.world} | size
    return {"config": settings.name} | source


def changes_pretraining(changes: Mapping[str, Any]) -> bool:
    """Whether a system with these changes needs a workdir of its own."""
    return any(field.split(".")[0] not in Settings.groups(SYSTEM) for field in changes)


def read_own_record(path: Path, asked: Mapping[str, Any]) -> Record:
    """Reads a record, and checks that it was made with what is asked for.

    Raises:
      UserError: it is not; names the first field that differs.
    """
    record = read_json(path)
    known, wanted = (
        flatten_dict({key: x.get(key, {}) for key in asked}, sep=".") for x in (record, asked)
    )
    for field in sorted(known.keys() | wanted.keys()):
        if known.get(field) != wanted.get(field):
            raise UserError(
                f"{path} has {field} {known.get(field)}, not {wanted.get(field)}: choose another "
                "folder for --results, or remove it"
            )
    return record


def manifest() -> dict[str, Any]:
    """What a run was made with: version, machine, date."""
    return {
        "version": ega_jax.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": platform.processor() or platform.machine(),
        "machine": description(),
    }


@functools.cache
def _commit() -> str | None:
    """The commit of the package's checkout, if it is one; marked if files were changed."""
    git, folder = shutil.which("git"), Path(ega_jax.__file__).parent
    if git is None:
        return None
    options = "--always", "--dirty", "--abbrev=40", "--exclude=*"
    asked = [git, "-C", str(folder), "describe", *options]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
