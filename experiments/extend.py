"""Adds items to the catalogue of a trained workdir, and binds it to the data that has them.

NEWDIR is a folder in the format of the workdir's data: its first POIs (and creatives) are the known
ones with unchanged embeddings, new ones follow. The workdir's tokenizer stays as it is and gives
codes to the new items; known items keep theirs. Afterwards the workdir belongs to NEWDIR:
experiments.evaluate and experiments.auction_align serve and measure the new catalogue, and
experiments.pretrain with more steps goes on with the new data.

    python -m experiments.extend --workdir=runs/shop --config.data.path=NEWDIR

If a known item is missing or has another embedding, it is named, and nothing is changed; so is
nothing after any other error. Mechanisms that were saved before know the old catalogue alone: run
experiments.auction_align again to save them with the new one.
"""

from absl import flags
from ml_collections import config_flags

from ega_jax.errors import UserError
from ega_jax.phases.extension import extend
from ega_jax.phases.pretraining import Pretraining
from ega_jax.training.mesh import data_mesh
from experiments.common import command, workdirs

command.define_config()
flags.adopt_module_key_flags(command)


def main() -> None:
    """Runs the command."""
    given = config_flags.get_override_values(flags.FLAGS["config"])
    if given.keys() != {"data.path"} or not given["data.path"]:
        raise UserError(
            "experiments.extend changes the data alone: give --config.data.path=NEWDIR and no "
            "other field"
        )
    settings, workdir = workdirs.find_workdir()
    path = workdirs.with_absolute_paths(settings.changed(given)).data.path
    added = extend(Pretraining(settings, workdir, data_mesh()), path)
    counts = " and ".join(f"{number} of kind {name}" for name, number in added.items())
    print(f"items added: {counts}; {workdir} now belongs to {path}")


if __name__ == "__main__":
    command.run(main, __doc__)
