"""Retrieval baselines on public interaction sequences: popularity, item kNN and SASRec.

    python -m experiments.retrieval_baselines --config=experiments/configs/retrieval.py:beauty \\
        --config.data.path=DIR

The config without a variant accepts any folder in the sequences format. Expected Recall@10 on the
test items of Amazon Beauty: popularity .011, item kNN .063, SASRec above .060. Item kNN's settings
have the highest Recall@10 on validation items (docs/log/retrieval.md).
"""

from ml_collections import ConfigDict

from ega_jax.baselines.retrieval.settings import RetrievalSettings
from experiments.configs.base import choose, flags_of

VARIANTS = {
    "": {},
    "beauty": {"data": {"path": "data/beauty"}, "item_knn": {"recency": 0.6}},
    "yelp": {"data": {"path": "data/yelp"}, "item_knn": {"recency": 0.9}},
    "movies": {
        "data": {"path": "data/movies", "history_length": 50},
        "item_knn": {"num_last": 50, "recency": 0.6},
    },
}


def settings(variant: str = "") -> RetrievalSettings:
    """Returns the settings of a variant: beauty, yelp, movies or none."""
    changes = choose(variant, VARIANTS)
    return RetrievalSettings(name=f"retrieval-{variant}" if variant else "retrieval").changed(
        changes
    )


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings of a variant for the flag `--config`."""
    return flags_of(settings(variant))
