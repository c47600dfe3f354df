"""A market of the tables: its systems, what they measured there, and their records."""

import dataclasses
import functools
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ega_jax
from ega_jax.baselines.settings import Settings
from ega_jax.evaluation.auction import systems
from ega_jax.evaluation.records import OTHERS, Record, record_of, write_record
from ega_jax.evaluation.report import write_results
from ega_jax.phases.auction import AuctionTraining
from ega_jax.setting import SYSTEM
from ega_jax.systems import compared
from ega_jax.training.files import read_json
from experiments.benchmarks.devices import description
from experiments.common.measuring import Measured, Sessions
from experiments.common.runs import changed, open_system, pretrained

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

    @property
    def kind(self) -> dict[str, Any]:
        """What markets of one table have in common."""
        market = self.settings.data.market
        size = {"size": market.size, "num_slots": market.num_slots, "book": market.book}
        log = Path(self.settings.data.path).name  # Of one's own; else empty.
        return {"log": log} if log else {"world": market.world} | size

    def record_path(self, name: str) -> Path:
        """The record of a run on this market."""
        return self.results / "runs" / f"{self.settings.name}-{self.number}-{name}.json"

    def is_recorded(self, name: str) -> bool:
        """Whether the run failed, or is compared with every recorded one of `OTHERS`."""
        record = self._record(name)
        others = [o for o in OTHERS if o != name and "means" in self._record(o)]
        known = next(iter(record.get("lifts", {}).values()), {})
        compared = all(f"value_vs_{other}" in known for other in others)
        return "failed" in record or ("means" in record and compared)

    def _record(self, name: str) -> Record:
        path = self.record_path(name)
        return read_json(path) if path.exists() else {}

    def measure(self, name: str) -> None:
        """Trains and measures a system, as far as that is not done, and writes its record."""
        own = self._measured(name)
        others = {
            other: self._measured(other).served
            for other in OTHERS
            if other != name and "means" in self._record(other)
        }
        found = record_of(own.results, others) | {"seconds": own.seconds}
        judged = systems(own.psi, own.run.name, own.rule)
        write_results(own.run.pretraining.workdir, {"systems": judged})
        self._write(name, found, own.run.settings.to_dict())

    def fail(self, name: str, reason: str) -> None:
        """Records that a run has failed."""
        self._write(name, {"failed": reason}, self.settings.to_dict())

    def _write(self, name: str, found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        run = {"system": name, "market": self.number, "data": self.kind}
        write_record(self.record_path(name), run | dict(found) | {"manifest": manifest(config)})

    def _measured(self, name: str) -> Measured:
        rule = self.settings.changed(compared()[name]).auction.rule
        return Measured(self._open(name), rule, self.sessions)

    def _open(self, name: str) -> AuctionTraining:
        """The training of a compared system."""
        folder_name, trained_as = folders_of(self.number, name)
        return self.open(compared()[trained_as], folder_name, f"systems/{trained_as}")

    def open(self, changes: Mapping[str, Any], workdir: str, place: str) -> AuctionTraining:
        """Returns the training of a system, whose workdir gets what the market has trained.

        Args:
          changes: the settings in which the system differs from the market's.
          workdir: its workdir in `root`.
          place: its folder in the workdir.
        """
        folder = self.root / workdir
        seeds = {"seed": self.number, "data.market.seed": self.number}
        own = changed(self.settings, seeds | dict(changes))
        if folder != self.workdir:
            _ = pretrained(changed(self.settings, seeds), self.workdir)  # Makes what is shared.
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


def folders_of(number: int, name: str) -> tuple[str, str]:
    """Returns the names of a run's workdir and system folder.

    A system with another pre-training has a workdir of its own. A system that differs from another
    one only in the payment rule is measured with that one's slates.
    """
    changes = compared()
    workdir = f"market-{number}" + f"-{name}" * changes_pretraining(changes[name])
    without_rule = lambda fields: {k: v for k, v in fields.items() if k != "auction.rule"}
    wanted = without_rule(changes[name])
    return workdir, next(name for name in changes if without_rule(changes[name]) == wanted)


def changes_pretraining(changes: Mapping[str, Any]) -> bool:
    """Whether a system with these changes needs a workdir of its own."""
    return any(field.split(".")[0] not in Settings.groups(SYSTEM) for field in changes)


def manifest(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was made with: version, settings, machine, date."""
    return {
        "version": ega_jax.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": platform.processor() or platform.machine(),
        "machine": description(),
        "config": dict(config),
    }


@functools.cache
def _commit() -> str | None:
    """The commit of the package's checkout, if it is one."""
    folder = Path(ega_jax.__file__).parent
    found = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
