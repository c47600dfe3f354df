"""Prepares data and semantic tokens, and pre-trains the generator.

The command simulates a market if the config has no data path, validates the data, fits the
tokenizers, pre-trains the generator on users' behaviour, and evaluates it. To continue a stopped
run, run the same command again; during training, Ctrl-C and SIGTERM save first. A finished
pre-training can be continued with more steps if no system uses its generator.

    python -m experiments.pretrain                         # The simulated market, tiny.
    python -m experiments.pretrain --config=experiments/configs/sequences.py:beauty \\
        --config.data.path=DIR --config.training.num_steps=5000
    python -m experiments.pretrain --workdir=runs/market-tiny --config.training.num_steps=1200

The workdir then holds config.json, data/ (a market's), tokenizers/, checkpoints/, metrics/ (JSON
lines), tensorboard/, figures/ and results.json.
"""

from absl import flags

from ega_jax.baselines.settings import Settings
from ega_jax.evaluation.report import print_table
from ega_jax.phases.pretraining import Pretraining
from ega_jax.training.mesh import data_mesh
from experiments.common import command, workdirs
from experiments.common.runs import pretrain

command.define_config()
flags.adopt_module_key_flags(command)


def main() -> None:
    """Runs the command."""
    settings, workdir = workdirs.open_workdir(Settings, more_steps=True)
    results = pretrain(Pretraining(settings, workdir, data_mesh()))
    print_table(results, title=settings.name)
    print(f"results.json and figures are in {workdir}")


if __name__ == "__main__":
    command.run(main, __doc__)
