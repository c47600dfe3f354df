"""Data, semantic tokens, generator: the first half of the main job.

Makes the data if the config names none, validates it, fits the tokenizers, pre-trains the
generator on users' interests, and measures it. Run it again with the same workdir to continue
where it stopped; in training Ctrl-C and SIGTERM save first.

    python -m experiments.pretrain                         # The embedded market, tiny.
    python -m experiments.pretrain --config=experiments/configs/sequences.py:beauty \\
        --config.data.path=DIR --config.training.num_steps=5000

The workdir then holds config.json, data/ (a market's), tokenizers/, checkpoints/, metrics/ (JSON
lines), tensorboard/ and results.json.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from ega_jax.evaluation.interest import evaluator_of
from ega_jax.evaluation.report import plot_curves, print_table, read_results, write_results
from ega_jax.training.mesh import data_mesh
from ega_jax.training.pretraining import Pretraining
from experiments import command

command.define_config()
flags.adopt_module_key_flags(command)


def main() -> None:
    """Runs the command."""
    config, workdir = command.open_workdir()
    results = pretrain(Pretraining(config, workdir, data_mesh()))
    print_table(results, title=config["name"])
    print(f"results.json and figures are in {workdir}")


def pretrained(config: Mapping[str, Any], workdir: Path) -> Pretraining:
    """The first half in a workdir bound to a config, run to its end unless it has been.

    Raises:
      ConfigMismatchError: the workdir was made with another config.
    """
    command.bind_workdir(workdir, dict(config))
    run = Pretraining(config, workdir, data_mesh())
    if not run.is_finished or "test" not in read_results(workdir):
        pretrain(run)
    return run


def pretrain(run: Pretraining) -> dict[str, Any]:
    """Pre-trains to the end, or restores, measures, and adds that to the workdir's `results.json`.

    Returns:
      What was added: `tokenizer`, `test`, `seconds` and `samples_per_second`.
    """
    start = time.perf_counter()
    settings, measure = run.config["evaluation"], evaluator_of(run)
    held_out = run.batches(run.validation_split, settings["validation_rows"])
    params = run.train_generator(lambda params: measure(params, held_out))
    results = {
        "tokenizer": {name: tokens.report for name, tokens in run.tokens.items()},
        "test": measure(params, run.batches("test")),
        "seconds": time.perf_counter() - start,
        "samples_per_second": run.samples_per_second(),
    }
    write_results(run.workdir, results)
    plot_curves(run.workdir, "generator")
    return results


if __name__ == "__main__":
    command.run(main, __doc__)
