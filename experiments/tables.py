"""Makes tables 2 and 3 of the paper: systems on several markets, scored by model and by truth.

Each number of `--markets` is a market, a log and a training seed of its own. On each market the
systems are trained and measured one after another: value, responses and ads at full bids on
`--value_sessions` test sessions, also along levers; revenue at the system's own prices on
`--rpm_sessions`; regret on `--psi_sessions`. Systems of one market share tokens, pre-training and
reward model unless their settings differ.

    python -m experiments.tables --config=experiments/configs/market.py:small
    python -m experiments.tables --config=experiments/configs/market.py:tiny --markets=0,1 \\
        --only=mca,gr,ega --results=/tmp/tables

Each run adds a record to the folder `runs` of `--results`. The tables and figures there merge all
records of the same kind of market, from any machine: table2.csv, table3.csv, claims.csv,
frontier.csv, tables.md, lifts.png, frontier.png. A run whose record exists is not repeated; an
interrupted run goes on where it stopped when the same command runs again. A run that fails because
a loss is not finite is recorded as failed, and the others go on; remove its record to try again.

Market 100 is the one that systems are tuned on: its tables are rehearsals, and have a folder of
their own.

Lifts compare a system with `mca` and `gr` on the same sessions of the same market. Over several
markets, intervals are Student's over the lifts of each; with one market they come from resampling
its sessions. `value_at_ctr_vs_mca` is the lift of the value at the CTR-poi of `mca`, on the
system's frontier along alpha, beta and kappa. The figure of frontiers shows a market's ceilings
once experiments.decomposition has recorded them there.

Several processes of one host may share a workdir: a process skips a market that another one works
on, and waits for it at the end.
"""

import itertools
import time
from pathlib import Path

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.settings import Settings
from ega_jax.errors import UserError
from ega_jax.evaluation.comparison import write_tables
from ega_jax.evaluation.records import read_records
from ega_jax.payment.network import HEADS
from ega_jax.systems import ABLATIONS, KINDS, compared, reserved
from ega_jax.training.files import locked
from ega_jax.training.loop import NonFiniteLossError
from experiments.common import command, workdirs
from experiments.common.measuring import Sessions
from experiments.common.protocol import TUNING_MARKET, Market, kind_of

command.define_config()
flags.adopt_module_key_flags(command)
OF_PAST_BIDS = {"auction.reserves", "allocation.bid_smoothing"}  # They need a log's books.
_MARKETS = flags.DEFINE_list("markets", ["0", "1", "2"], "Numbers of markets; none: only merge.")
_ONLY = flags.DEFINE_list("only", None, "Systems to run; default: all that the log allows.")
_RESULTS = flags.DEFINE_string("results", "experiments/results", "Folder for the tables.")
_VALUE = flags.DEFINE_integer("value_sessions", 4096, "Sessions for value and responses.", 2)
_RPM = flags.DEFINE_integer("rpm_sessions", 2048, "Sessions for revenue.", 2)
_PSI = flags.DEFINE_integer("psi_sessions", 256, "Sessions for regret.", 1)


def main() -> None:
    """Runs the command."""
    if not all(number.isdecimal() for number in _MARKETS.value):
        raise UserError(f"--markets={','.join(_MARKETS.value)}: each is a number from 0 on")
    if jax.process_count() > 1:
        raise UserError("--several_hosts: tables are made by one process, or by one per market")
    start, results = time.perf_counter(), results_folder()
    settings, workdir = workdirs.open_workdir(Settings, free=workdirs.PATHS, check=check)
    sessions = Sessions(_VALUE.value, _RPM.value, _PSI.value)
    market_of = lambda number: Market(int(number), settings, workdir, results, sessions)
    names = systems_for(settings) if _ONLY.value is None else _ONLY.value
    runs = [(market_of(number), name) for number in _MARKETS.value for name in names]
    for wait, (market, name) in itertools.product((False, True), runs):
        systems = market.workdir / "systems"
        systems.mkdir(parents=True, exist_ok=True)
        with locked(systems, wait=wait) as is_ours:
            if not is_ours or market.state(name):
                continue
            print_grid(runs, running=(market, name))
            measure(market, name)
            jax.clear_caches()  # The number of compiled functions in a process is limited.
            merge(settings, workdir)
    print_grid(runs)
    merge(settings, workdir)
    print((results / "tables.md").read_text())
    print(f"tables and figures are in {results}; {(time.perf_counter() - start) / 60:.1f} minutes")


def check(settings: Settings) -> None:
    """Checks that the tables can be made with these settings.

    Raises:
      UserError: EGA has no learned prices, a system is unknown or not for this log, all systems
        are to have a reserve, one log is to be several markets, or the market that systems are
        tuned on would share a table with others.
    """
    if settings.auction.rule not in HEADS:
        raise UserError(
            f"config.auction.rule: tables have EGA at learned prices, {' or '.join(HEADS)}"
        )
    if _ONLY.value is not None:
        command.check_named("system", _ONLY.value, systems_for(settings))
    if settings.allocation.reserve:
        raise UserError(
            "config.allocation.reserve: tables compare systems without it; the rows with reserves "
            "take those of auction.reserves"
        )
    if settings.data.path and len(_MARKETS.value) > 1:
        raise UserError(
            f"--markets={','.join(_MARKETS.value)}: {settings.data.path} is one log, so one market"
        )
    recorded = read_records(results_folder() / "runs", kind_of(settings))
    markets = {int(number) for number in _MARKETS.value} | {each["market"] for each in recorded}
    if TUNING_MARKET in markets and len(markets) > 1:
        raise UserError(
            f"--markets={','.join(_MARKETS.value)}: {TUNING_MARKET} is the market of "
            f"experiments.tune: measure it alone, with a folder of its own for --results; "
            f"{results_folder()} would have markets {', '.join(map(str, sorted(markets)))}"
        )


def systems_for(settings: Settings) -> list[str]:
    """The systems that a log allows: without books there are no past bids."""
    has_books = not settings.data.path or (Path(settings.data.path) / "books").is_dir()
    return [name for name, own in compared().items() if has_books or not OF_PAST_BIDS & own.keys()]


def results_folder() -> Path:
    """The folder of the tables."""
    return Path(_RESULTS.value).expanduser()


def measure(market: Market, name: str) -> None:
    """Trains, measures and records one run; a loss that is not finite is recorded too."""
    try:
        market.measure(name)
    except NonFiniteLossError as error:
        market.fail(name, str(error))


def merge(settings: Settings, workdir: Path) -> None:
    """Writes the tables of all records on this kind of market."""
    ablations = "ega", *ABLATIONS, *reserved()
    results, names = results_folder(), {"table2": tuple(KINDS), "table3": ablations}
    with locked(workdir):  # What is read must not be older than what another process wrote.
        runs, found = (
            read_records(results / folder, kind_of(settings)) for folder in ("runs", "ceilings")
        )
        ceilings = {record["market"]: record["value"] for record in found}
        write_tables(runs, names, results, ceilings)


def print_grid(runs: list[tuple[Market, str]], running: tuple[Market, str] | None = None) -> None:
    """Prints which runs are recorded: one line per system, one column per market."""
    markets = {market.number: market for market, _ in runs}
    done = sum(bool(market.state(name)) for market, name in runs)
    title = f"{done} of {len(runs)} runs recorded"
    columns = "system", *(f"market {number}" for number in markets)
    grid = Table(*columns, title=title, title_justify="left")
    for name in dict.fromkeys(name for _, name in runs):
        states = (
            "running" if (market, name) == running else market.state(name) or "-"
            for market in markets.values()
        )
        grid.add_row(name, *states)
    Console(width=100).print(grid)


if __name__ == "__main__":
    command.run(main, __doc__)
