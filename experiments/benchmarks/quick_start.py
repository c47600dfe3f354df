"""The quick start, timed: both commands, with compilation and running apart.

    python -m experiments.benchmarks.quick_start TIMES.json MODULE [FLAG ...]

runs one command as `python -m MODULE` does, and writes how long JAX compiled to a file.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.compilation import compile_times
from experiments.benchmarks.timing import emit

COMMANDS = ("experiments.pretrain", "experiments.auction_align")


def measure_quick_start(flags: Sequence[str] = ()) -> None:
    """Times the commands of the quick start; emits one line per command and one for both.

    The compilation cache on disk is off, so that the times are those of a first run.

    Args:
      flags: flags of the first command, which make it smaller.

    Raises:
      SystemExit: a command fails; its output is printed.
    """
    total = {"seconds": 0.0, "compile_seconds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            own = [f"--workdir={folder}/run", *(flags if command == COMMANDS[0] else ())]
            record = timed_command(Path(folder), command, own)
            total = {name: total[name] + record[name] for name in total}
            emit({"part": "quick_start", "command": command, **record})
    rest = {"run_seconds": total["seconds"] - total["compile_seconds"]}
    emit({"part": "quick_start", "command": "both", **total, **rest})


def timed_command(folder: Path, module: str, flags: Sequence[str]) -> dict[str, float]:
    """Runs a command in a process of its own; returns its seconds, and those of compilation."""
    times = folder / f"{module}.json"
    line = [sys.executable, "-m", __name__, str(times), module, *flags]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    start = time.perf_counter()
    code = subprocess.run(line, env=environment, stdout=sys.stderr, check=False).returncode
    seconds = time.perf_counter() - start
    if code:
        raise SystemExit(f"{module} ended with exit code {code}")
    compiling = json.loads(times.read_text())
    rest = {"run_seconds": seconds - compiling["compile_seconds"]}
    return {"seconds": seconds, **compiling, **rest}


def main() -> None:
    """Runs the command and writes the times, however it ends."""
    times, module, *flags = sys.argv[1:]
    sys.argv = [module, *flags]
    with compile_times() as compiling:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            record = {"compile_seconds": compiling.seconds, **compiling.stages}
            Path(times).write_text(json.dumps(record))


if __name__ == "__main__":
    main()
