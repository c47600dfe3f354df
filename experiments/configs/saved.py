"""The config saved in a workdir: `saved.py:WORKDIR`.

With `--workdir` and no `--config`, commands use the saved config if there is one.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ega_jax.errors import UserError
from ega_jax.training.checkpoints import read_config


def get_config(workdir: str = "") -> ConfigDict:
    """Returns the config saved in a workdir.

    Raises:
      UserError: the folder has no saved config.
    """
    if not (Path(workdir) / "config.json").is_file():
        raise UserError(
            f"{workdir or 'no folder'} is not a workdir: run experiments.pretrain first"
        )
    return ConfigDict(_with_tuples(read_config(workdir)))


def _with_tuples(value: Any) -> Any:
    """Converts the lists of a JSON file back to tuples, which flags can change."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
