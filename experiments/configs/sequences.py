"""Public interaction sequences, leave-one-out: retrieval of the next item by generating its codes.

    python -m experiments.pretrain --config=experiments/configs/sequences.py:beauty \\
        --config.data.path=DIR

`experiments.convert` makes the folder from the public files of Amazon reviews, the Yelp Open
Dataset and MovieLens. The config without a variant accepts any folder in that format; training
takes about half an hour on two CPU cores for data of the size of Amazon Beauty. Expected results
are in docs/results.md.
"""

from ml_collections import ConfigDict

from ega_jax.baselines.settings import Settings
from experiments.configs.base import choose, flags_of

DEFAULT = {
    "data": {"path": "data/sequences", "history_length": 12, "num_slots": 4, "interactions": 0.7},
    "tokenizer": {"kind": "kmeans", "num_layers": 2, "num_codes": 1024},
    "generator": {
        "encoder_blocks": 2,
        "decoder_blocks": 2,
        "dropout_rate": 0.3,
    },
    "optimizer": {"learning_rate": 1.5e-3, "weight_decay": 0.05, "warmup_steps": 300},
    "training": {
        "batch_size": 128,
        "num_steps": 12_000,
        "checkpoint_every": 1000,
        "evaluate_every": 2000,
    },
}
VARIANTS = {
    "": {},
    "beauty": {"data": {"path": "data/beauty"}},
    "yelp": {"data": {"path": "data/yelp"}},
    "movies": {
        "data": {"path": "data/movies", "history_length": 50},
        "tokenizer": {"num_layers": 3, "num_codes": 64},
        "training": {"num_steps": 1000, "checkpoint_every": 250, "evaluate_every": 250},
    },
}


def settings(variant: str = "") -> Settings:
    """Returns the settings of a variant: beauty, yelp, movies or none."""
    changes = choose(variant, VARIANTS)
    name = f"sequences-{variant}" if variant else "sequences"
    return Settings(name=name).changed(DEFAULT).changed(changes)


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings of a variant for the flag `--config`."""
    return flags_of(settings(variant))
