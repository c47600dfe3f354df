"""Checks a dataset folder of either format, without training.

    python -m experiments.validate --config.data.path=data/ad_log

Prints what the folder holds, with warnings of what looks wrong, and exits 0. If the folder breaks a
rule of its format, prints the file, the column, the first bad row and the rule, and exits 1.
Reads a log a part at a time, however large it is, and writes nothing.
"""

import dataclasses
import os
from pathlib import Path

from absl import flags
from rich.console import Console

from ega_jax.baselines.settings import Settings
from ega_jax.data.description import describe
from ega_jax.data.schema import validate
from ega_jax.errors import UserError
from ega_jax.evaluation.report import print_table
from ega_jax.phases.settings import DataSettings
from ega_jax.training.progress import ProgressReport
from experiments.common import command

command.define_config()
flags.adopt_module_key_flags(command)


def _data_settings() -> DataSettings:
    """Reads the group `data` of any config; fields that a config lacks have their defaults."""
    given = flags.FLAGS.config.data.to_dict()
    names = {field.name for field in dataclasses.fields(DataSettings)}
    known = {name: value for name, value in given.items() if name in names}
    return Settings().changed({"data": known}).data


def main() -> None:
    """Checks the folder, and prints what it holds.

    Raises:
      UserError: no folder is named, it breaks a rule of its format, or a field of the config's
        group `data` is out of its range.
    """
    data = _data_settings()
    if not data.path:
        raise UserError("no folder to check: name it with --config.data.path=DIR")
    folder = Path(os.path.expanduser(data.path))
    with ProgressReport("checking", 0, 1) as progress:
        summary = validate(folder, data.num_slots or None, progress.count)
    with ProgressReport("counting", 0, 1) as progress:
        found = describe(folder, summary, data.fractions, progress.count)
    print_table(found.facts, title=f"{folder}: valid")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for warning in found.warnings:
        console.print(f"warning: {warning}")


if __name__ == "__main__":
    command.run(main, __doc__)
