"""Runs the parts of a suite within a time budget, each in a process of its own.

A part that crashes, is killed or hangs costs its own measurements after that moment, and nothing
else. Results are written as they come: `emit` in a part appends to `results.jsonl`.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax

from ega_jax.errors import UserError
from ega_jax.training.interrupt import Interrupted
from ega_jax.training.mesh import split_cpu
from experiments.benchmarks.compilation import compile_times
from experiments.benchmarks.summary import summary
from experiments.benchmarks.timing import emit

RESULTS, SUMMARY, LOGS = "results.jsonl", "summary.md", "logs"
LEAST_S = 0.1  # A part with less time is not started.
KILL_S = 10.0  # A killed process that still lives is waited for no longer.
LAST_LINES = 10  # Lines of a failed part's output that are kept with its result.
PRELOADED = "experiments.benchmarks.accelerator"  # What parts need; imported once for all.


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a suite.

    Attributes:
      name: names the part and its log.
      share: the largest share of the time left that it may take.
      measure: emits measurements; it can be pickled. A `UserError` says why it cannot run here.
    """

    name: str
    share: float
    measure: Callable[[], None]


def run(parts: Sequence[Part], budget_s: float, out: str | os.PathLike) -> None:
    """Runs parts in order; writes and prints a summary, also after Ctrl-C or SIGTERM.

    Args:
      parts: the parts, the most valuable first.
      budget_s: seconds for all of them.
      out: folder for the results; made if needed.

    Raises:
      UserError: the folder already holds results.
      Interrupted: Ctrl-C or SIGTERM stopped the suite; the running part is killed.
    """
    folder = Path(out).expanduser().absolute()
    results = folder / RESULTS
    if results.exists():
        raise UserError(f"{folder} holds results already: name another folder with --out")
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    results.touch()
    end = time.monotonic() + budget_s
    try:
        with (
            _sigterm_as_interrupt(),
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        ):
            for part in parts:
                _run_part(part, end - time.monotonic(), folder, scratch)
    except KeyboardInterrupt:
        raise Interrupted("stopped; what was measured is kept") from None
    finally:
        text = summary(read_lines(results))
        (folder / SUMMARY).write_text(text)
        print(f"\n{text}\nresults are in {folder}")


def read_lines(results: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; skips lines that are cut off or no records of a part."""
    records = []
    for line in results.read_text().splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and "part" in record]


def _run_part(part: Part, left_s: float, folder: Path, scratch: str) -> None:
    """Runs a part; notes its end if its process did not do so itself, and prints it."""
    results, log = folder / RESULTS, folder / LOGS / f"{part.name}.log"
    log.touch()
    start = time.monotonic()
    ended = {"status": "stopped", "reason": "the suite was stopped"}
    try:
        ended = _end_of(part, part.share * left_s, (str(results), str(log), scratch))
    finally:
        noted = [r for r in read_lines(results) if r["part"] == part.name and "status" in r]
        if not noted:
            noted = [{"part": part.name, "seconds": time.monotonic() - start} | ended]
            lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            with results.open("a") as file, contextlib.redirect_stdout(file):
                emit(noted[0] | ({"output": lines} if lines else {}))
        print(_told(noted[0]), flush=True)


def _told(end: Mapping[str, Any]) -> str:
    """One line on how a part ended."""
    reason = f": {end['reason']}" if "reason" in end else ""
    return f"{end['part']}: {end['status']} after {end['seconds']:.3g} s{reason}"


def _end_of(part: Part, limit: float, places: tuple[str, str, str]) -> dict[str, str]:
    """Runs a part in a process of its own for at most `limit` seconds; returns how that ended."""
    if limit < LEAST_S:
        return {"status": "not run", "reason": "no time was left"}
    # The server has imported what parts need, but has never touched the device: a process forked
    # from it starts at once, and as clean as a new interpreter.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    process = context.Process(target=_measure, args=(part, *places))
    try:
        process.start()
    except Exception as error:  # Whatever it is, the other parts go on.
        return {"status": "failed", "reason": f"its process did not start: {error!r}"}
    try:
        process.join(limit)
        if process.is_alive():
            return {"status": "timed out", "reason": f"its limit was {limit:.0f} s"}
    finally:
        _kill(process)
    return {"status": "failed", "reason": _reason(process.exitcode or 0, Path(places[1]))}


def _reason(code: int, log: Path) -> str:
    """Why a process failed: the signal that killed it, else the last line of its output."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with exit code {code} and without a result"


def _kill(process: BaseProcess) -> None:
    """Ends a part's process and all that it started, and waits until their memory is free."""
    group = process.pid or 0
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    process.kill()  # It may not have a group of its own yet.
    process.join(KILL_S)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(20):
            os.killpg(group, 0)
            time.sleep(0.1)


def _measure(part: Part, results: str, log: str, scratch: str) -> None:
    """Runs a part in this process: what it prints goes to `results`, its errors to `log`."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream, path in ((1, results), (2, log)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    tempfile.tempdir = scratch  # What a killed part leaves there goes with the suite.
    if jax.config.values["jax_compilation_cache_dir"] is None:  # Parts prepare much the same.
        jax.config.update("jax_compilation_cache_dir", f"{scratch}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    split_cpu()
    start = time.perf_counter()
    with compile_times() as compiling:
        ended = {"status": "ok"}
        try:
            part.measure()
        except UserError as error:
            ended = {"status": "not run", "reason": str(error)}
        seconds = {"seconds": time.perf_counter() - start, "compile_seconds": compiling.seconds}
        emit({"part": part.name} | seconds | ended)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM raise `KeyboardInterrupt`, so that no part outlives the suite."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
