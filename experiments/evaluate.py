"""Evaluates a workdir's generator or one of its systems on a held-out split, without training.

    python -m experiments.evaluate --workdir=runs/market-tiny
    python -m experiments.evaluate --workdir=runs/sequences-beauty --split=validation --num_beams=64
    python -m experiments.evaluate --workdir=runs/market-tiny --system=ega --split=align

Evaluates the generator's newest checkpoint; its training may be running or stopped. With `--system`
it evaluates that system, whose training must be finished, under every payment rule. Prints a table
and writes it to `results.json` under the split's name.
"""

from typing import Any

from absl import flags

from ega_jax.errors import UserError
from ega_jax.evaluation.interest import evaluator_of
from ega_jax.evaluation.report import print_systems, print_table, write_results
from ega_jax.phases.pretraining import Pretraining
from ega_jax.training.mesh import data_mesh
from experiments.common import command, workdirs
from experiments.common.runs import find_system, measure_systems

command.define_system("the generator is evaluated")
flags.adopt_module_key_flags(command)
_SPLIT = flags.DEFINE_string("split", None, "Held-out split; default: the config's, test.")
_NUM_BEAMS = flags.DEFINE_integer("num_beams", None, "Beams; default: the config's.", 10)


def main() -> None:
    """Runs the command."""
    settings, workdir = workdirs.find_workdir()
    split = _SPLIT.value or settings.evaluation.split
    if name := flags.FLAGS.system:
        if _NUM_BEAMS.value:
            raise UserError("--num_beams: a system is measured with the beams of its config")
        run = find_system(workdir, name)
        found = measure_systems(run, run.mechanism, split)
        results: dict[str, Any] = {"systems": found}
        print_systems(found, title=f"{settings.name}, {split}")
    else:
        num_beams = _NUM_BEAMS.value or settings.evaluation.num_beams
        settings = settings.changed({"evaluation.num_beams": num_beams})
        generator = Pretraining(settings, workdir, data_mesh())
        results = evaluator_of(generator)(generator.newest_generator(), generator.batches(split))
        print_table({split: results}, title=settings.name)
    write_results(workdir, {split: results})


if __name__ == "__main__":
    command.run(main, __doc__)
