"""Retrieval baselines on public interaction sequences: popularity, item kNN and SASRec.

    python -m experiments.retrieval_baselines --config=experiments/configs/retrieval.py:beauty \
        --config.data.path=DIR

Without a variant the config takes any folder in the sequences format. Expected Recall@10 on the
test items of Amazon Beauty: popularity .011, item kNN .063, SASRec above .060. The settings of item
kNN are those of the highest Recall@10 on validation items (BUILD_NOTES.md).
"""

from ml_collections import ConfigDict

from experiments.configs.base import base, choose

VARIANTS = {
    "": {},
    "beauty": {"data": {"path": "data/beauty"}, "item_knn": {"recency": 0.6}},
    "yelp": {"data": {"path": "data/yelp"}, "item_knn": {"recency": 0.9}},
    "movies": {
        "data": {"path": "data/movies", "history_length": 50},
        "item_knn": {"num_last": 50, "recency": 0.6},
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant: beauty, yelp, movies or none."""
    settings = choose(variant, VARIANTS)
    config = ConfigDict(
        {
            "name": f"retrieval-{variant}" if variant else "retrieval",
            "seed": 0,
            "data": {"path": "data/sequences", "history_length": 20},  # T
            "item_knn": {
                "recency": 0.8,  # Factor per step back in the history.
                "num_last": 20,  # Items of a history that count.
            },
            "sasrec": {
                "loss": "softmax",  # softmax, or binary with one negative (the paper's).
                "width": 64,  # D
                "num_heads": 2,
                "hidden": 256,
                "blocks": 2,
                "dropout_rate": 0.4,
                "dtype": "float32",  # Of the computation.
            },
            "optimizer": base("").optimizer.to_dict() | {"learning_rate": 2e-3},
            "training": {
                "batch_size": 128,  # B
                "num_steps": 3000,
                "checkpoint_every": 1000,
                "log_every": 50,
                "evaluate_every": 500,
            },
            "evaluation": {
                "batch_size": 256,
                "validation_rows": 4096,  # Measured every `training.evaluate_every` steps.
                "split": "test",  # Measured at the end.
            },
        }
    )
    config.update(settings)
    return config
