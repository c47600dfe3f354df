"""Trains reward model, alignment and payment network on top of a finished pre-training.

The workdir must come from experiments.pretrain. The command trains the reward model on logged
feedback, aligns the generator by policy gradient, tabulates the outcomes of truthful bids and of
sampled misreports, trains the payment network on that table, and scores the auction under every
payment rule. To continue a stopped run, run the same command again; during training, Ctrl-C and
SIGTERM save first.

    python -m experiments.auction_align --workdir=runs/market-tiny
    python -m experiments.auction_align --workdir=runs/market-tiny --system=calm \\
        --config.allocation.beta=8

The reward model is stored in reward/ and the rest in systems/SYSTEM/: checkpoints/, metrics/,
tensorboard/, figures/, tables/ and mechanism/, which `ega_jax.Mechanism.restore` reads. The scores
are added to results.json.
"""

from absl import flags

from ega_jax.auction.pricing import RULES
from ega_jax.baselines.settings import Settings
from ega_jax.errors import UserError
from ega_jax.evaluation.auction import MODEL_MYERSON, MYERSON
from ega_jax.evaluation.report import print_systems, print_table
from ega_jax.lever_rules import TRUTHFUL
from ega_jax.phases.pretraining import Pretraining
from ega_jax.systems import KINDS
from ega_jax.training.mesh import data_mesh
from experiments.common import command, workdirs
from experiments.common.runs import open_system, train_and_measure

command.define_config()
command.define_system()
flags.adopt_module_key_flags(command)


def main() -> None:
    """Runs the command."""
    settings, workdir = workdirs.open_workdir(Settings)
    name, kind = command.named_system(), settings.auction.system
    if name in KINDS and name != kind:
        raise UserError(
            f"--system={name} would name a system of the kind {kind}: give it another name, or set "
            f"--config.auction.system={name}"
        )
    for rule in (*RULES, MYERSON, MODEL_MYERSON, TRUTHFUL):
        if name.endswith(f"-{rule}"):
            raise UserError(
                f"--system={name}: results.json would keep under that name the slates of "
                f"{name.removesuffix(f'-{rule}')} at the prices of {rule}; choose another"
            )
    pretraining = Pretraining(settings, workdir, data_mesh())
    pretraining.check_finished()
    folder = workdir / "systems" / name
    results = train_and_measure(open_system(pretraining, folder))
    print_table({"reward": results["reward"]}, title=settings.name)
    print_systems(results["systems"], title=settings.name)
    print(f"results.json is in {workdir}, models and figures in {workdir / 'systems'}")


if __name__ == "__main__":
    command.run(main, __doc__)
