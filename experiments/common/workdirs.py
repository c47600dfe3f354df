"""Settings from the command line, and the workdir bound to them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from absl import flags

from ega_jax.baselines.retrieval.settings import RetrievalSettings
from ega_jax.baselines.settings import Settings
from ega_jax.errors import UserError
from ega_jax.phases.extension import system_configs
from ega_jax.phases.pretraining import Pretraining
from ega_jax.setting import SYSTEM, WORKDIR, leaves
from ega_jax.systems import check_settings
from ega_jax.training.checkpoints import PhaseCheckpoints, check_workdir, read_config
from ega_jax.training.mesh import data_mesh

PATHS = ("data.path", "data.market.sequences")  # Stored absolute, whatever the current folder.
STEPS = "training.num_steps"
SettingsTree = TypeVar("SettingsTree", bound=Settings | RetrievalSettings)


def open_workdir(
    kind: type[SettingsTree],
    free: tuple[str, ...] | None = None,
    more_steps: bool = False,
    check: Callable[[SettingsTree], object] = lambda settings: None,
) -> tuple[SettingsTree, Path]:
    """Reads the settings of the command line and binds the workdir to them.

    Args:
      kind: the settings tree of the command.
      free: fields that may differ from run to run; default: those that do not bind a workdir.
      more_steps: whether the command may continue a pre-training with more steps.
      check: the command's own check of the settings, which raises `UserError`.

    Returns:
      The settings and the workdir.

    Raises:
      ConfigMismatchError: the workdir was made with other settings.
      UserError: a field's value is out of its range, or the config belongs to another command. No
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
    check(settings)
    workdir = Path(flags.FLAGS.workdir or Path("runs") / settings.name).expanduser().absolute()
    free = settings.free(WORKDIR) if free is None else free
    if more_steps:
        free += (STEPS,) * may_go_on(workdir, settings.training.num_steps)
    bind_workdir(workdir, settings, free)
    return settings, workdir


def with_absolute_paths(settings: SettingsTree) -> SettingsTree:
    """Returns the settings with data paths made absolute, relative to the current folder."""
    given = {leaf.name: leaf.value for leaf in leaves(settings) if leaf.name in PATHS}
    absolute = lambda path: str(Path(path).expanduser().absolute())
    return settings.changed({name: absolute(path) for name, path in given.items() if path})


def check_market_source(settings: Settings) -> None:
    """Checks that the world `yelp` has its sequences.

    Raises:
      UserError: neither an ad log nor an existing folder of sequences is given.
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
    """Returns True if the pre-training of a workdir may have `num_steps` steps.

    Without a checkpoint, any number is allowed. With one, more steps are allowed if no system uses
    the generator: training continues from the last checkpoint, with the learning-rate schedule of
    all the steps.

    Raises:
      UserError: there would be fewer steps, or a system uses the generator.
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
    """Returns the folders of systems in a workdir that use its generator."""
    return [str(file.parent.relative_to(workdir)) for file in system_configs(workdir)]


def bind_workdir(
    workdir: Path, settings: Settings | RetrievalSettings, free: tuple[str, ...] | None = None
) -> None:
    """Binds a workdir to settings; see `check_workdir`.

    Groups that bind systems keep the values in `config.json` that the workdir was made with, unless
    they bind the workdir here. So the settings of one system are not the defaults of the next.

    Args:
      workdir: the folder; made if it is absent.
      settings: the command's settings.
      free: fields that may differ; default: those that do not bind a workdir.

    Raises:
      ConfigMismatchError: the workdir was made with other settings.
      DataError: `data.path` was changed to a folder that is no dataset.
      ConfigMismatchError: `data.path` was changed to a folder of other items.
    """
    free = settings.free(WORKDIR) if free is None else free
    made_with = read_config(workdir) if (workdir / "config.json").exists() else {}
    path = made_with.get("data", {}).get("path", "")
    has_tokens = (workdir / "tokenizers").is_dir()
    if path and str(Path(path).expanduser().absolute()) == settings.data.path:
        free += ("data.path",)  # Older versions stored it as given.
    elif made_with and settings.data.path and has_tokens and isinstance(settings, Settings):
        # A folder that is no dataset, or one of other items, does not replace the right one.
        Pretraining(settings, workdir, data_mesh()).check_items()
    kept = [name for name in settings.groups(SYSTEM) if any(f.startswith(f"{name}.") for f in free)]
    kept = {name: made_with[name] for name in kept if name in made_with}
    check_workdir(workdir, settings.to_dict() | kept, free)


def find_workdir() -> tuple[Settings, Path]:
    """Returns the settings in the config of an existing workdir, and the workdir.

    Raises:
      FileNotFoundError: the folder is not a workdir.
      UserError: this version does not accept its settings.
    """
    return opened(flags.FLAGS.workdir or str(Path("runs") / "market-tiny"))


def opened(folder: str) -> tuple[Settings, Path]:
    """Returns the settings in the config of an existing workdir, and its absolute path.

    Raises:
      FileNotFoundError: the folder is not a workdir.
      UserError: this version does not accept its settings.
    """
    workdir = Path(folder).expanduser().absolute()
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(f"{workdir} is not a workdir: run experiments.pretrain first")
    return Settings.from_dict(read_config(workdir)), workdir
