"""The part of a report that is about one workdir."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ega_jax import __version__
from ega_jax.baselines.settings import Settings
from ega_jax.data.description import describe
from ega_jax.data.market.calibration import calibrate
from ega_jax.evaluation.report import read_results
from ega_jax.evaluation.visits import Visits
from ega_jax.phases.pretraining import Pretraining
from ega_jax.reporting.advertisers import advertisers_section
from ega_jax.reporting.blocks import Part, Section
from ega_jax.reporting.data import data_section, support_section
from ega_jax.reporting.overview import overview_section
from ega_jax.reporting.repeat import flags_of, settings_section
from ega_jax.reporting.reward import reward_section, served_section
from ega_jax.reporting.slates import slates_section
from ega_jax.reporting.systems import (
    Measurements,
    frontier_section,
    incentives_section,
    systems_section,
)
from ega_jax.reporting.training import curves_section, tokens_section
from ega_jax.setting import leaves
from ega_jax.training.metrics import read_metrics
from experiments.configs import market
from experiments.reports.studies import Study, titles_of

RATES = 5000  # Sessions whose true click rates are averaged.


@dataclasses.dataclass(frozen=True)
class WorkdirStudy:
    """A workdir and the measurements of its systems."""

    name: str
    workdir: Path
    settings: Settings
    systems: Mapping[str, Study]  # By name; at least one.

    @property
    def measured(self) -> dict[str, tuple[Measurements, Visits]]:
        """What was measured of each system, and what it served."""
        return {name: (study.measurements, study.visits) for name, study in self.systems.items()}

    @property
    def visits(self) -> dict[str, Visits]:
        """What each system served."""
        return {name: study.visits for name, study in self.systems.items()}

    @property
    def pretraining(self) -> Pretraining:
        """What all systems share."""
        return next(iter(self.systems.values())).run.pretraining


def part_of(study: WorkdirStudy) -> Part:
    """All sections about a workdir."""
    results = read_results(study.workdir)
    measurements = {name: system.measurements for name, system in study.systems.items()}
    facts = {name: system.facts for name, system in study.systems.items()}
    sections = [
        overview_section(_data_of(study), __version__, facts),
        systems_section(measurements, results["systems"]),
        served_section(study.visits),
        frontier_section(measurements, results.get("sweep", {})),
        incentives_section(measurements),
        *_of_systems(study),
        _data_section(study),
        support_section(study.visits),
        *([tokens_section(results["tokenizer"])] if "tokenizer" in results else []),
        *([reward_section(results["reward"])] if "reward" in results else []),
        curves_section(_metrics_of(study)),
        _settings_section(study),
    ]
    return Part(study.name, sections)


def _of_systems(study: WorkdirStudy) -> list[Section]:
    """Slates and advertisers of each system."""
    titles = titles_of(next(iter(study.systems.values())).run)
    return [
        section
        for name, system in study.systems.items()
        for section in (
            slates_section(name, system.slates, titles),
            advertisers_section(
                name,
                system.accounts,
                system.landscapes,
                titles,
                by_truth=system.visits.judge == "truth",
            ),
        )
    ]


def _data_of(study: WorkdirStudy) -> str:
    """What the data are, in a sentence."""
    data, summary = study.settings.data, study.pretraining.dataset.summary
    origin = data.market
    source = (
        f"The ad log {Path(data.path).name}"
        if data.path
        else f"A simulated ad market (size {origin.size}, world {origin.world}, seed {origin.seed})"
    )
    return (
        f"{source} with {summary.num_rows:,} sessions, {summary.num_items:,} POIs and "
        f"{summary.num_creatives:,} creatives."
    )


def _data_section(study: WorkdirStudy) -> Section:
    run = study.pretraining
    found = describe(run.folder, run.dataset.summary, study.settings.data.fractions)
    rates = None
    if (run.folder / "truth").is_dir():
        rates = calibrate(run.folder, RATES)["click_poi.true_rate_by_slot"]
    return data_section(found.facts, found.warnings, rates, study.visits)


def _metrics_of(study: WorkdirStudy) -> dict[str, list[dict[str, float]]]:
    """The logged records of all phases of training."""
    shared = [study.workdir, study.workdir / "reward", *sorted(study.workdir.glob("stages/*"))]
    places = {"": shared} | {f"{name}, ": [s.run.folder] for name, s in study.systems.items()}
    return {
        f"{owner}{path.stem}": read_metrics(path)
        for owner, folders in places.items()
        for folder in folders
        for path in sorted(folder.glob("metrics/[!.]*.jsonl"))
    }


def _settings_section(study: WorkdirStudy) -> Section:
    own = {name: _fields(system.run.settings) for name, system in study.systems.items()}
    workdir = _fields(study.settings)
    return settings_section(_fields(Settings()), workdir, own, _commands(study, workdir, own))


def _fields(settings: Any) -> dict[str, Any]:
    return {leaf.name: leaf.value for leaf in leaves(settings)}


def _commands(
    study: WorkdirStudy, workdir: Mapping[str, Any], systems: Mapping[str, Mapping[str, Any]]
) -> Sequence[str]:
    """The commands that make the workdir again; the config is the one that is most alike."""
    bases = {name: _fields(market.settings(name)) for name in market.VARIANTS}
    variant = min(bases, key=lambda name: len(flags_of(workdir, bases[name])))
    folder = f"--workdir=runs/{study.workdir.name}"
    config = f"--config=experiments/configs/market.py:{variant}"
    first = ["python -m experiments.pretrain", config, folder, *flags_of(workdir, bases[variant])]
    trained = [
        ["python -m experiments.auction_align", folder, f"--system={name}", *flags_of(own, workdir)]
        for name, own in systems.items()
    ]
    report = ["python -m experiments.report", folder]
    return [" \\\n    ".join(words) for words in (first, *trained, report)]
