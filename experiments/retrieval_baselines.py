"""Trains and evaluates the retrieval baselines popularity, item kNN and SASRec on sequences.

Validates the data, trains SASRec, and ranks the whole catalogue for every user of the held-out
split with each of the three. To continue a stopped run, run the same command again; during
training, Ctrl-C and SIGTERM save first.

    python -m experiments.retrieval_baselines --config=experiments/configs/retrieval.py:beauty \\
        --config.data.path=DIR --workdir=DIR
    python -m experiments.retrieval_baselines --config=experiments/configs/retrieval.py:beauty \\
        --config.data.path=DIR --config.sasrec.loss=binary

The workdir then holds config.json, checkpoints/, metrics/ (JSON lines), tensorboard/ and
results.json, with the metrics under `retrieval` and the split's name. The metrics `unseen_*` remove
the items of the user's history from the ranking; the others keep them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.retrieval import sasrec
from ega_jax.baselines.retrieval.full_ranking import Scores, full_ranking
from ega_jax.baselines.retrieval.item_knn import ItemKnn, ItemKnnSettings
from ega_jax.baselines.retrieval.popularity import Popularity
from ega_jax.baselines.retrieval.sasrec import SasrecConfig, SasrecSettings
from ega_jax.baselines.retrieval.settings import RetrievalSettings
from ega_jax.data import pipeline
from ega_jax.data.sequences import SequenceDataset
from ega_jax.errors import UserError
from ega_jax.evaluation.report import write_results
from ega_jax.setting import part_of
from ega_jax.training.loop import train
from ega_jax.training.mesh import data_mesh
from ega_jax.training.progress import ProgressReport
from experiments.common import command, workdirs

command.define_config()
flags.adopt_module_key_flags(command)


def main() -> None:
    """Runs the command."""
    settings, workdir = workdirs.open_workdir(RetrievalSettings)
    dataset = open_sequences(settings.data.path)
    systems = {
        "popularity": Popularity.fit(dataset).scores,
        "item_knn": ItemKnn.fit(dataset, **part_of(settings.item_knn, ItemKnnSettings)).scores,
        "sasrec": train_sasrec(dataset, settings, workdir),
    }
    split = settings.evaluation.split
    held_out = held_out_batches(dataset, settings, split)
    figures = {name: full_ranking(scores, held_out) for name, scores in systems.items()}
    write_results(workdir, {"retrieval": {split: figures}})
    print_figures(figures, title=f"{settings.name}, {split}")


def open_sequences(folder: str) -> SequenceDataset:
    """Validates and reads a folder of sequences.

    Raises:
      DataError: the folder breaks a rule of its format.
      UserError: the folder holds an ad log.
    """
    with ProgressReport("validating", 0, 1) as progress:
        dataset = pipeline.open_dataset(folder, progress=progress.count)
    if not isinstance(dataset, SequenceDataset):
        raise UserError(f"{folder} holds an ad log; retrieval baselines take sequences")
    return dataset


def held_out_batches(
    dataset: SequenceDataset, settings: RetrievalSettings, split: str, num_rows: int | None = None
) -> list[dict[str, Any]]:
    """Returns the batches of a held-out split, or about `num_rows` rows spread evenly over it."""
    size = settings.evaluation.batch_size
    batches = pipeline.eval_batches(
        dataset,
        split,
        batch_size=size,
        history_length=settings.data.history_length,
        num_slots=1,
        max_batches=None if num_rows is None else -(-num_rows // size),
    )
    return list(batches)


def train_sasrec(dataset: SequenceDataset, settings: RetrievalSettings, workdir: Path) -> Scores:
    """Trains SASRec to the end, from its last checkpoint if there is one."""
    sizes = SasrecConfig(
        num_items=dataset.summary.num_items,
        history_length=settings.data.history_length,
        **part_of(settings.sasrec, SasrecSettings),
    )
    rows = settings.evaluation.validation_rows
    validation = held_out_batches(dataset, settings, "validation", rows)
    scores_of = sasrec.make_scores(sizes)
    phase = sasrec.sasrec_phase(
        dataset,
        sizes,
        settings.optimizer,
        settings.training,
        settings.seed,
        evaluate=lambda params: full_ranking(scores_of(params), validation),
        evaluate_every=settings.training.evaluate_every,
    )
    state = train(phase, workdir=workdir, config=settings.to_dict(), mesh=data_mesh())
    return scores_of(state.params)


def print_figures(figures: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Prints one column per system."""
    table = Table("measure", *figures, title=title, title_justify="left")
    for measure in next(iter(figures.values())):
        table.add_row(measure, *(f"{figures[name][measure]:.4f}" for name in figures))
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    command.run(main, __doc__)
