"""Measures what a workdir holds, on any held-out split, without training.

    python -m experiments.evaluate --workdir=runs/market-tiny
    python -m experiments.evaluate --workdir=runs/sequences-beauty --split=validation --num_beams=64

Takes the newest checkpoint, also of a run that is still under way or was stopped. Prints a table
and writes it to `results.json` under the split's name.
"""

from absl import flags

from ega_jax.evaluation.interest import evaluator_of
from ega_jax.evaluation.report import print_table, write_results
from ega_jax.training.mesh import data_mesh
from ega_jax.training.pretraining import Pretraining
from experiments import command

flags.adopt_module_key_flags(command)
_SPLIT = flags.DEFINE_string("split", None, "Held-out split; by default the config's, test.")
_NUM_BEAMS = flags.DEFINE_integer("num_beams", None, "Beams; by default the config's.", 10)


def main() -> None:
    """Runs the command."""
    config, workdir = command.find_workdir()
    settings = config["evaluation"]
    settings["split"] = _SPLIT.value or settings["split"]
    settings["num_beams"] = _NUM_BEAMS.value or settings["num_beams"]
    run = Pretraining(config, workdir, data_mesh())
    params = run.newest_generator()
    measured = evaluator_of(run)(params, run.batches(settings["split"]))
    results = {settings["split"]: measured}
    write_results(workdir, results)
    print_table(results, title=config["name"])


if __name__ == "__main__":
    command.run(main, __doc__)
