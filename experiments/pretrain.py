"""Data, semantic tokens, generator: the first half of the main job.

Makes the data if the config names none, validates it, fits the tokenizers, pre-trains the
generator on users' interests, and measures it. Run it again with the same workdir to continue
where it stopped; in training Ctrl-C and SIGTERM save first. A finished pre-training goes on if it
is given more steps, as long as no system is built on it.

    python -m experiments.pretrain                         # The embedded market, tiny.
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
