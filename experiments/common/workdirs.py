"""The settings of a command line, and the workdir that is bound to them."""

import dataclasses
from pathlib import Path
from typing import TypeVar

from absl import flags

from ega_jax.baselines.retrieval.settings import RetrievalSettings
from ega_jax.baselines.settings import Settings
from ega_jax.errors import UserError
from ega_jax.setting import SYSTEM, WORKDIR, leaves
from ega_jax.systems import check_settings
from ega_jax.training.checkpoints import PhaseCheckpoints, check_workdir, read_config

PATHS = ("data.path", "data.market.sequences")  # Kept absolute: commands may start anywhere.
STEPS = "training.num_steps"
BUILT = ("systems", "tuning")  # Folders of a workdir with systems that use its generator.
SettingsTree = TypeVar("SettingsTree", bound=Settings | RetrievalSettings)


def open_workdir(
    kind: type[SettingsTree], free: tuple[str, ...] | None = None, more_steps: bool = False
) -> tuple[SettingsTree, Path]:
    """Reads the settings of the command line and binds the workdir to them.

    Args:
      kind: the tree of settings that the command reads.
      free: fields that may differ from run to run; default: those that bind no workdir.
      more_steps: the command goes on with a pre-training that is to have more steps.

    Returns:
      The settings and the workdir.

    Raises:
      ConfigMismatchError: the workdir was made with other settings.
      UserError: a field's value is out of its range, or the config is of another command; no
        workdir is made.
    """
    config = flags.FLAGS.config.to_dict()
    groups = [field.name for field in dataclasses.fields(kind)]
    if missing := [group for group in groups if group not in config]:
        raise UserError(
            f"the config {config['name']} has no fields for this command ({', '.join(missing)}): "
            "name another with --config; the command's --help shows which"
        )
    settings = with_absolute_paths(kind.from_dict(config))
    if isinstance(settings, Settings):
        check_settings(settings)
        check_market_source(settings)
    workdir = Path(flags.FLAGS.workdir or Path("runs") / settings.name).expanduser().absolute()
    free = settings.free(WORKDIR) if free is None else free
    if more_steps:
        free += (STEPS,) * may_go_on(workdir, settings.training.num_steps)
    bind_workdir(workdir, settings, free)
    return settings, workdir


def with_absolute_paths(settings: SettingsTree) -> SettingsTree:
    """The settings with the paths of data as they are seen from the current folder."""
    given = {leaf.name: leaf.value for leaf in leaves(settings) if leaf.name in PATHS}
    absolute = lambda path: str(Path(path).expanduser().absolute())
    return settings.changed({name: absolute(path) for name, path in given.items() if path})


def check_market_source(settings: Settings) -> None:
    """Checks that the world `yelp` has its sequences.

    Raises:
      UserError: there is no such folder.
    """
    market = settings.data.market
    if market.world == "yelp" and not (
        settings.data.path or Path(market.sequences or "-").is_dir()
    ):
        raise UserError(
            "config.data.market.world is yelp: set config.data.market.sequences to the folder of "
            f"the Yelp sequences; {market.sequences!r} is none"
        )


def may_go_on(workdir: Path, num_steps: int) -> bool:
    """Whether the pre-training of a workdir may have another number of steps.

    Without a checkpoint it may. Else it may have more steps, as long as nothing is built on the
    generator: training goes on from the last checkpoint, and the schedule of the learning rate
    is that of all steps.

    Raises:
      UserError: there are steps to be taken back, or systems whose generator would change.
    """
    path = workdir / "checkpoints" / "generator"
    if not (workdir / "config.json").exists() or PhaseCheckpoints(path).latest_step() is None:
        return True
    known = read_config(workdir)["training"]["num_steps"]
    if num_steps < known:
        raise UserError(
            f"config.{STEPS} is {num_steps}, but the generator in {workdir} was trained for "
            f"{known}: steps can be added, not taken back; choose another workdir"
        )
    names = systems_of(workdir)
    if num_steps > known and names:
        raise UserError(
            f"config.{STEPS} is {num_steps}, but {', '.join(names)} are built on the generator in "
            f"{workdir}, which has {known} steps: choose another workdir"
        )
    return True


def systems_of(workdir: Path) -> list[str]:
    """The folders of a workdir whose systems are built on its generator."""
    found = [path.parent for name in BUILT for path in workdir.glob(f"{name}/*/config.json")]
    return sorted(str(path.relative_to(workdir)) for path in found)


def bind_workdir(
    workdir: Path, settings: Settings | RetrievalSettings, free: tuple[str, ...] | None = None
) -> None:
    """Binds a workdir to settings; see `check_workdir`.

    The groups that bind systems stay in the file as the workdir was made, unless they bind the
    workdir here: what one system is trained with is no default of the next.

    Args:
      workdir: the folder, made if it is absent.
      settings: of the command.
      free: fields that may differ; default: those that bind no workdir.
    """
    free = settings.free(WORKDIR) if free is None else free
    made_with = read_config(workdir) if (workdir / "config.json").exists() else {}
    path = made_with.get("data", {}).get("path", "")
    if path and str(Path(path).expanduser().absolute()) == settings.data.path:
        free += ("data.path",)  # Once kept as it was given.
    kept = [name for name in settings.groups(SYSTEM) if any(f.startswith(f"{name}.") for f in free)]
    kept = {name: made_with[name] for name in kept if name in made_with}
    check_workdir(workdir, settings.to_dict() | kept, free)


def find_workdir() -> tuple[Settings, Path]:
    """Returns the settings that an existing workdir was made with, and the workdir.

    Raises:
      FileNotFoundError: `--workdir` is not one.
      UserError: its settings are not those of this version.
    """
    workdir = Path(flags.FLAGS.workdir or Path("runs") / "market-tiny").expanduser().absolute()
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(f"{workdir} is not a workdir: run experiments.pretrain first")
    return Settings.from_dict(read_config(workdir)), workdir
