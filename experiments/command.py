"""What all commands share: flags, one clean message per error, and exit codes.

Exit codes: 0 done, 1 an error that the message explains, 2 wrong flags, 130 stopped on request
with everything saved.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from ega_jax.data.tables import DataError
from ega_jax.training.checkpoints import (
    CheckpointMismatchError,
    ConfigMismatchError,
    check_workdir,
    read_config,
)
from ega_jax.training.loop import Interrupted, NonFiniteLossError
from ega_jax.training.mesh import join_hosts

CONFIGS = Path(__file__).parent / "configs"
FREE = (  # Fields that may differ from run to run in one workdir.
    "data.path",
    "training.checkpoint_every",
    "training.log_every",
    "training.evaluate_every",
    "evaluation",
)
EXPLAINED = (
    DataError,
    CheckpointMismatchError,
    ConfigMismatchError,
    NonFiniteLossError,
    FileNotFoundError,
    FileExistsError,
    ValueError,
)

_WORKDIR = flags.DEFINE_string("workdir", None, "Where results are kept; by default runs/NAME.")
_SEVERAL_HOSTS = flags.DEFINE_bool(
    "several_hosts", False, "Join the other processes of a run on several hosts (TPU pods, SLURM)."
)


def define_config(default: str = "market.py:tiny") -> None:
    """Defines the flag `--config`, a file of `experiments/configs` with an optional variant."""
    config_flags.DEFINE_config_file(
        "config",
        str(CONFIGS / default),
        "Config file and variant, e.g. experiments/configs/market.py:small; a field is changed "
        "by --config.field=value.",
    )


def open_workdir() -> tuple[dict[str, Any], Path]:
    """Reads the config flag and binds the workdir to it.

    Returns:
      The config as a plain dictionary, and the workdir.

    Raises:
      ConfigMismatchError: the workdir was made with another config.
    """
    config = flags.FLAGS.config.to_dict()
    workdir = Path(_WORKDIR.value or Path("runs") / config["name"]).absolute()
    check_workdir(workdir, config, FREE)
    return config, workdir


def find_workdir() -> tuple[dict[str, Any], Path]:
    """Returns the config that an existing workdir was made with, and the workdir.

    Raises:
      FileNotFoundError: `--workdir` is not one.
    """
    workdir = Path(_WORKDIR.value or Path("runs") / "market-tiny").absolute()
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(f"{workdir} is not a workdir: run experiments.pretrain first")
    return read_config(workdir), workdir


def run(main: Callable[[], None], description: str | None) -> None:
    """Parses flags and runs `main`, turning expected errors into one message.

    Args:
      main: the command.
      description: shown by `--help`.
    """
    sys.modules["__main__"].__doc__ = description

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        logging.set_verbosity(logging.WARNING)
        if _SEVERAL_HOSTS.value:
            join_hosts()
        try:
            main()
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(130)
        except EXPLAINED as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; an unknown variant or field is answered with the valid ones."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        message = error.args[0] if error.args else str(error)
    print(f"error: {message}\n{_valid_fields(argv)}", file=sys.stderr)
    sys.exit(2)


def _valid_fields(argv: list[str]) -> str:
    """Lists the fields of the config that the flags name, if it can be read."""
    plain = [arg for arg in argv if not arg.startswith(("--config.", "-config."))]
    try:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(plain)
        fields = flags.FLAGS.config
    except (flags.Error, AttributeError, ValueError, FileNotFoundError):
        return "see --help"
    lines = []
    for name, value in sorted(fields.items()):
        group = hasattr(value, "items")
        lines.append(f"  config.{name}" + (": " + ", ".join(sorted(value)) if group else ""))
    return "valid fields:\n" + "\n".join(lines)
