"""The parts that all commands share: flags, error messages and exit codes.

Exit codes: 0 success; 1 an error that the user can mend, with a message; 2 wrong flags; 130 stopped
by the user or SIGTERM, with training saved.
"""

import os
import re
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
from absl import app, flags, logging
from flax.traverse_util import flatten_dict
from ml_collections import config_flags

from ega_jax.errors import UserError
from ega_jax.setting import unknown_fields
from ega_jax.training.compilation import keep_compiled
from ega_jax.training.loop import Interrupted, NonFiniteLossError
from ega_jax.training.mesh import join_hosts, keep_freed_memory, split_cpu

CONFIGS = Path(__file__).parent.parent / "configs"
DEFAULT = "market.py:tiny"
EGA = "ega"  # The default system.
CONFIG = ("--config=", "-config=")  # Prefixes of the flag of the config file.
WORKDIR = ("--workdir=", "-workdir=")
SYSTEM = ("--system=", "-system=")
FIELD = ("--config.", "-config.")  # Prefixes of flags that change a field.
SOUGHT = re.compile(r"--?(config(\.\w+)*|workdir|system)")
EXPLAINED = (  # Errors that a user can mend; any other error is a bug and shows its traceback.
    UserError,
    NonFiniteLossError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)

flags.DEFINE_string(
    "workdir",
    None,
    "Folder for results. Default: runs/NAME, with the config's name; for commands without a config "
    "runs/market-tiny; for payment_theory runs/payment-theory.",
)
_SEVERAL_HOSTS = flags.DEFINE_bool(
    "several_hosts", False, "Join the other processes of a run on several hosts (TPU pods, SLURM)."
)
_COMPILATION_CACHE = flags.DEFINE_bool(
    "compilation_cache",
    True,
    "Keep compiled functions for later runs, in the user's cache folder or that of the environment "
    "variable JAX_COMPILATION_CACHE_DIR.",
)


def define_config() -> None:
    """Defines the flag `--config`, a file of `experiments/configs` with an optional variant.

    The default is set when flags are parsed, not here, so that unknown fields get a clear message
    there. A process that imports several commands defines the flag once.
    """
    if "config" in flags.FLAGS:
        return
    config_flags.DEFINE_config_file(
        "config",
        None,
        f"Config file and variant, e.g. experiments/configs/market.py:small. Default: {DEFAULT}; "
        "with --workdir, the saved config. --config.field=value changes a field, e.g. "
        "--config.training.num_steps=1000.",
    )


def define_system(otherwise: str = EGA, what: str = "A system of the workdir") -> None:
    """Defines the flag `--system`, which names a system of the workdir; defined once.

    Args:
      otherwise: the default, for `--help`.
      what: what the flag may name, for `--help`.
    """
    if "system" not in flags.FLAGS:
        flags.DEFINE_string("system", None, f"{what}; without it, {otherwise}.")


def named_system() -> str:
    """Returns the system that the flag names; default: EGA."""
    return flags.FLAGS.system or EGA


def check_named(kind: str, named: Iterable[str], valid: Iterable[str]) -> None:
    """Refuses an empty list of names and invalid names.

    Raises:
      UserError: lists the valid names.
    """
    named, valid = list(named), list(valid)
    if unknown := sorted(set(named) - set(valid)) or ([] if named else ["named"]):
        raise UserError(f"no {kind} {', '.join(unknown)}; there are {', '.join(valid)}")


def run(main: Callable[[], None], description: str | None) -> None:
    """Parses flags and runs `main`; errors that a user can mend are printed as one message.

    Args:
      main: the command.
      description: the text of `--help`.
    """
    sys.modules["__main__"].__doc__ = description
    sys.argv = _joined(sys.argv)

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}", exitcode=2)
        logging.set_verbosity(logging.WARNING)
        keep_freed_memory()
        if _COMPILATION_CACHE.value:
            keep_compiled()
        else:
            jax.config.update("jax_enable_compilation_cache", False)
        if _SEVERAL_HOSTS.value:
            join_hosts()
        else:
            split_cpu()
        try:
            main()
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(130)
        except KeyboardInterrupt:  # Outside of training; the current part starts again.
            print("stopped; run the same command again to continue", file=sys.stderr)
            sys.exit(130)
        except EXPLAINED as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded, flags_parser=_parse)


def _joined(argv: list[str]) -> list[str]:
    """Joins `--flag value` to `--flag=value` for the flags that are read before parsing."""
    joined: list[str] = []
    for arg in argv:
        if joined and SOUGHT.fullmatch(joined[-1]) and not arg.startswith("--"):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; for an unknown config file, variant or field, prints the valid ones."""
    try:
        if "config" in flags.FLAGS:
            sys.argv = _config_first(argv)  # ml_collections reads the fields' flags from there.
            return flags.FLAGS(sys.argv)
        for arg in argv[1:]:
            if arg.startswith((*CONFIG, *FIELD)):
                raise flags.Error(f"{arg}: this command takes no config; a workdir has its own")
        return flags.FLAGS(argv)
    except flags.Error as error:
        # If a config file raises an error, the message of `flags.Error` holds a whole traceback.
        lines = str(error).strip().splitlines()
        message = lines[0] if "Traceback" not in str(error) else lines[-1].partition(": ")[2]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = _unknown_fields(argv) or str(error)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _config_first(argv: list[str]) -> list[str]:
    """Puts the flag of the config file, or the default, before the flags of its fields.

    Raises:
      flags.Error: there is no such file.
    """
    named = _config_named(argv)
    path = named.partition(":")[0]
    if not Path(path).is_file():
        valid = sorted(os.path.relpath(file) for file in CONFIGS.glob("[!_]*.py"))
        valid = [name for name in valid if Path(name).name not in ("base.py", "saved.py")]
        raise flags.Error(f"no config file {path}; there are {', '.join(valid)}")
    rest = [arg for arg in argv[1:] if not arg.startswith(CONFIG)]
    return [argv[0], f"--config={named}", *rest]


def _config_named(argv: list[str]) -> str:
    """Returns the config file and variant: the given one, else the workdir's, else the default.

    If the workdir holds the system that `--system` names, the system's config is used.
    """
    values = lambda starts: [arg.partition("=")[2] for arg in argv if arg.startswith(starts)]
    if named := values(CONFIG):
        return named[-1]
    system = (values(SYSTEM) or [EGA])[-1]
    for value in values(WORKDIR)[-1:]:
        workdir = Path(value).expanduser()
        for folder in (workdir / "systems" / system, workdir):
            if (folder / "config.json").exists():
                return f"{CONFIGS / 'saved.py'}:{folder}"
    return str(CONFIGS / DEFAULT)


def _unknown_fields(argv: list[str]) -> str:
    """Returns a message with unknown config fields and all valid ones; "" if none is unknown."""
    path, _, variant = _config_named(argv).partition(":")
    config = runpy.run_path(path)["get_config"](*filter(None, [variant]))
    valid = flatten_dict(config.to_dict(), sep=".")
    named = [arg.partition(".")[2].partition("=")[0] for arg in argv if arg.startswith(FIELD)]
    unknown = [name for name in named if name not in valid]
    return unknown_fields(unknown, valid) if unknown else ""
