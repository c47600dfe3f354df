"""Studies of a pre-trained workdir that train kinds of models with several seeds each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ega_jax.evaluation.lifts import student_interval
from ega_jax.evaluation.report import read_results, write_results
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.pretraining import Pretraining
from ega_jax.systems import training_of
from ega_jax.training.mesh import data_mesh
from experiments.common import workdirs


def pretrained_run() -> AuctionTraining:
    """Opens the pre-trained workdir that the flags name, for models beside its systems.

    Raises:
      FileNotFoundError: the folder is not a workdir.
      UserError: this version does not accept its settings, or pre-training is not finished.
    """
    settings, workdir = workdirs.find_workdir()
    pretraining = Pretraining(settings, workdir, data_mesh())
    pretraining.check_finished()
    return training_of(pretraining, workdir / "systems" / "ega")


def measured_by_seed(
    run: AuctionTraining,
    study: str,
    kinds: Iterable[str],
    num_seeds: int,
    measure: Callable[[str, int], Mapping[str, float]],
) -> dict[str, dict[str, Any]]:
    """Measures each kind of model with each seed, as far as results.json does not hold it.

    Args:
      run: the workdir's training.
      study: the name of the study in results.json.
      kinds: of models.
      num_seeds: seeds of each kind.
      measure: trains a model of a kind with a seed, and returns its figures.

    Returns:
      Kind -> seed -> figures, of all that were ever measured.
    """
    workdir = run.pretraining.workdir
    for seed in range(num_seeds):
        for kind in kinds:
            if str(seed) not in read_results(workdir).get(study, {}).get(kind, {}):
                write_results(workdir, {study: {kind: {str(seed): dict(measure(kind, seed))}}})
    return read_results(workdir)[study]


def mean_shown(values: Sequence[float]) -> str:
    """Returns the mean over seeds as text, with its 95 % Student interval if there are several."""
    mean, (low, high) = np.mean(values), student_interval(values)
    return f"{mean:.4f}" if len(values) < 2 else f"{mean:.4f} ± {(high - low) / 2:.4f}"
