"""Measures value and latency by the number of ads in the book, for EGA and the cascade MCA.

Each number of `--ads` is a market of its own in the folder book-N of the workdir, with as many
advertisers per region; a book holds those with budget left whose POI is open, about 83 %. On each
market, EGA and MCA are trained once and measured on `--value_sessions` test sessions by the truth.

    python -m experiments.funnel --config=experiments/configs/market.py:small
    python -m experiments.funnel --config=experiments/configs/market.py:tiny --ads=40,200 \\
        --recalls=20,all --results=/tmp/funnel
    python -m experiments.funnel --config=experiments/configs/market.py:small --latency_only \\
        --ads=1000,100000,1000000

`mca` has the configured funnel, `mca-recall-N` recalls N ads, and `mca-recall-all` all; later
stages keep as many ads as configured. Only the funnel that serves differs: all stages are those of
`mca`, which are trained once, with its funnel.

The rows of funnel.csv, in `--results`, are `system,ads,value,ctr_poi,low,high,ms`:

- `ads` as in `--ads`.
- `value` per 1000 impressions. That of `ega` is at the CTR-poi of `mca`, linear on its frontier
  along the levers that it follows; it is empty where no setting has as many clicks. MCA and its
  variants have no frontier: their value is their own, at their own clicks.
- `ctr_poi` at the system's own levers.
- `low` and `high`, the 95 % interval of `value` by resampling the sessions; they are empty where a
  resampling has no value.
- `ms`, the median of serving a request alone at the system's own prices.

`--latency_only` trains nothing: EGA with random models of the config's sizes serves books of random
ads. Its rows have `ms` alone and never replace a measured row. Otherwise a row replaces that of the
same system and number of ads. funnel.png draws all rows. An interrupted run goes on where it
stopped when the same command runs again; what is measured is not measured again.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from ega_jax.baselines.cascade.mca import MCA
from ega_jax.baselines.settings import Settings, whole
from ega_jax.errors import UserError
from ega_jax.evaluation.lifts import bootstrap_interval, frontier_value, measured
from ega_jax.evaluation.serving import Outcomes, figures_of
from ega_jax.phases.auction import AuctionTraining
from ega_jax.systems import compared
from ega_jax.training.files import locked
from ega_jax.types import Params
from experiments.benchmarks.book_serving import book_serving_ms
from experiments.benchmarks.books import book_sizes
from experiments.benchmarks.timing import emit
from experiments.common import command, workdirs
from experiments.common.funnel_table import Row, add, row_of
from experiments.common.measuring import LATENCY_LIMIT_S, Measured, Sessions
from experiments.common.protocol import TUNING_MARKET, Market

command.define_config()
flags.adopt_module_key_flags(command)
ALL = "all"
LARGEST = 2**31 - 1  # The funnel counts ads in int32.
# Other commands have flags of these names.
_ADS = flags.DEFINE_list(
    "ads", ["40", "200", "1000", "5000"], "Advertisers per region.", allow_override=True
)
_RESULTS = flags.DEFINE_string(
    "results", "experiments/results", "Folder for funnel.csv and funnel.png.", allow_override=True
)
_VALUE = flags.DEFINE_integer("value_sessions", 4096, "Sessions for value.", 2, allow_override=True)
_MARKET = flags.DEFINE_integer("market", 0, "Number of the markets; seeds them and training.", 0)
_RECALLS = flags.DEFINE_list("recalls", ["20", "100", ALL], "Other recalls of MCA.")
_LATENCY_ONLY = flags.DEFINE_bool("latency_only", False, "Only time EGA, with random models.")


def main() -> None:
    """Runs the command."""
    ads, results = book_sizes(_ADS.value), Path(_RESULTS.value).expanduser()
    for row in latency_rows(ads) if _LATENCY_ONLY.value else measured_rows(ads, results):
        emit(dict(row))
        add(results, row)
    print(f"funnel.csv and funnel.png are in {results}")


def latency_rows(ads: Iterable[int]) -> Iterator[Row]:
    """Yields a row of EGA for each size of a book, with milliseconds only."""
    settings = Settings.from_dict(flags.FLAGS.config.to_dict())
    for size in ads:
        yield row_of("ega", size, ms=book_serving_ms(settings, size, LATENCY_LIMIT_S))


def measured_rows(ads: Sequence[int], results: Path) -> Iterator[Row]:
    """Trains and measures all systems on the market of each size of a book; yields their rows."""
    changes = {recall: recalling(recall) for recall in _RECALLS.value}
    check = lambda settings: sized(settings, ads)
    settings, workdir = workdirs.open_workdir(Settings, free=workdirs.PATHS, check=check)
    for size, own in sized(settings, ads).items():
        sessions = Sessions(_VALUE.value, rpm=0, psi=0)
        market = Market(_MARKET.value, own, workdir / f"book-{size}", results, sessions)
        systems = market.workdir / "systems"
        systems.mkdir(parents=True, exist_ok=True)
        with locked(systems):
            yield from rows_of_market(market, size, changes)


def sized(settings: Settings, ads: Sequence[int]) -> dict[int, Settings]:
    """The settings for the market of each size of a book.

    Raises:
      UserError: a log is given, which has its own books, a market cannot have that size, or it is
        the one that systems are tuned on.
    """
    if settings.data.path:
        raise UserError("config.data.path: --ads sizes simulated markets; leave it empty")
    if _MARKET.value == TUNING_MARKET:
        raise UserError(f"--market={TUNING_MARKET} is the market of experiments.tune")
    found = {size: settings.changed({"data.market.book": size}) for size in ads}
    for own in found.values():
        _ = own.data.market.config  # Checked when it is made.
    return found


def recalling(recall: str) -> dict[str, Any]:
    """The settings of a funnel that recalls a number of ads, or all.

    Raises:
      UserError: it is neither a positive number nor `all`.
    """
    if recall == ALL:
        return {"cascade.funnel.recall_share": 1.0, "cascade.funnel.most_recalled": LARGEST}
    if not recall.isdecimal() or int(recall) < 1:
        raise UserError(f"--recalls={recall}: each is a positive whole number, or {ALL}")
    budgets = ("cascade.funnel.least_recalled", "cascade.funnel.most_recalled")
    return dict.fromkeys(budgets, int(recall))


def rows_of_market(
    market: Market, ads: int, recalls: Mapping[str, Mapping[str, Any]]
) -> Iterator[Row]:
    """Yields the rows of MCA, of its other recalls and of EGA, each measured when it is asked for.

    Args:
      market: the market.
      ads: its advertisers per region.
      recalls: settings of MCA's other funnels.
    """
    rule = market.settings.auction.rule
    of = lambda run: Measured(run, rule, market.sessions)
    folder = market.workdir.name
    mca = market.open(compared()["mca"], folder, _at("mca"))
    reference = of(mca)
    yield measured_row("mca", ads, reference)
    for recall, changes in recalls.items():
        name = f"mca-recall-{recall}"
        run = market.open({**compared()["mca"], **changes}, folder, _at(name))
        variant = OtherFunnel(run.pretraining, run.folder, run.kind, trained=mca)
        yield measured_row(name, ads, of(variant))
    jax.clear_caches()  # The number of compiled functions in a process is limited.
    ega = of(market.open(compared()["ega"], folder, _at("ega")))
    yield measured_row("ega", ads, ega, reference.value["truth"])
    jax.clear_caches()


def _at(name: str) -> str:
    """The folder of a system in its workdir."""
    return f"systems/{name}"


@dataclasses.dataclass(frozen=True)
class OtherFunnel(AuctionTraining):
    """A trained cascade that serves with the funnel of other settings; nothing is trained for it.

    Attributes:
      trained: the cascade.
    """

    trained: AuctionTraining

    @functools.cached_property
    def system(self) -> MCA:
        """The cascade with the other funnel."""
        trained = self.trained.system
        if not isinstance(trained, MCA):
            raise TypeError(f"{type(trained).__name__} has no funnel")
        funnel = whole(self.settings).cascade.funnel
        config = dataclasses.replace(trained.upstream.config, funnel=funnel)
        return dataclasses.replace(
            trained, upstream=dataclasses.replace(trained.upstream, config=config)
        )

    @functools.cached_property
    def networks(self) -> dict[str, Params]:
        """The payment networks of the trained cascade."""
        return self.trained.networks


def measured_row(name: str, ads: int, system: Measured, reference: Outcomes | None = None) -> Row:
    """Measures a system by the truth, as far as that is not done, and returns its row.

    Args:
      name: the system's name.
      ads: advertisers per region.
      system: the system.
      reference: the outcomes at whose clicks a frontier is valued; None: the own value is taken.
    """
    ms = system.costs["ms"]  # First, since it trains the system.
    own = system.value["truth"]
    if reference is None:
        statistic, outcomes = own_value, [own]
    else:
        points = [point["truth"] for point in system.frontier.values()]
        statistic, outcomes = frontier_value, [reference, *points]
    value, ctr = measured(statistic, outcomes), figures_of(own)["ctr_poi"]
    low, high = bootstrap_interval(statistic, outcomes) if np.isfinite(value) else (value, value)
    return row_of(name, ads, value=value, ctr_poi=ctr, low=low, high=high, ms=ms)


def own_value(totals: Sequence[Outcomes]) -> np.ndarray:
    """The value of one system per 1000 impressions."""
    return totals[0].figures()["value"]


if __name__ == "__main__":
    command.run(main, __doc__)
