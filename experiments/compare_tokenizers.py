r"""Compares residual k-means and RQ-VAE tokenizers on one dataset.

    python -m experiments.compare_tokenizers --config=experiments/configs/sequences.py:beauty \
        --config.data.path=DIR

Fits both kinds on the config's dataset, in `WORKDIR/kmeans` and `WORKDIR/rqvae`. For POIs and
creatives it prints the usage of codes, the explained variance of the embeddings (R2), and the
collision rate of items before and after resolution. Finished tokenizers are restored, not refitted.
"""

import time

from absl import flags
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.settings import Settings
from ega_jax.evaluation.report import write_results
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.tokenization import KINDS
from ega_jax.training.mesh import data_mesh
from experiments.common import command, workdirs

command.define_config()
flags.adopt_module_key_flags(command)

COLUMNS = {
    "usage_attainable": "least usage",
    "perplexity": "least perplexity",
    "r2": "R2",
    "collision_rate_before": "collisions before",
    "collision_rate": "after",
    "largest_leaf": "largest leaf",
}


def main() -> None:
    """Runs the command."""
    settings, workdir = workdirs.open_workdir(Settings)
    first = Pretraining(settings, workdir, data_mesh())
    print(first.dataset.summary)
    table = Table("tokens", "kind", *COLUMNS.values(), "seconds")
    results = {}
    for kind in KINDS:
        own = settings.changed({"data.path": str(first.folder), "tokenizer.kind": kind})
        run = Pretraining(own, workdir / kind, first.mesh)
        start = time.perf_counter()
        results[kind] = {name: tokens.report for name, tokens in run.tokens.items()}
        seconds = time.perf_counter() - start
        for name, report in results[kind].items():
            table.add_row(name, kind, *(_worst(report[key]) for key in COLUMNS), f"{seconds:.0f}")
    write_results(workdir, {"tokenizers": results})
    Console(width=120).print(table)


def _worst(value: float | list[float]) -> str:
    return f"{min(value) if isinstance(value, list) else value:.4g}"


if __name__ == "__main__":
    command.run(main, __doc__)
