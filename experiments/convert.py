r"""Converts a public dataset to the sequences format.

Amazon reviews (2014, 2018 or 2023; JSON lines, plain or .gz):
  python -m experiments.convert --source=amazon --reviews=reviews_Beauty_5.json.gz \
      --metadata=meta_Beauty.json.gz --out=data/beauty

Yelp Open Dataset:
  python -m experiments.convert --source=yelp --out=data/yelp \
      --reviews=yelp_academic_dataset_review.json --metadata=yelp_academic_dataset_business.json

MovieLens (u.data and u.item, ratings.dat and movies.dat, or ratings.csv and movies.csv):
  python -m experiments.convert --source=movielens --reviews=ml-1m/ratings.dat \
      --metadata=ml-1m/movies.dat --out=data/ml-1m
"""

from pathlib import Path

from absl import app, flags

from ega_jax.data.convert.amazon import AMAZON
from ega_jax.data.convert.dataset import convert
from ega_jax.data.convert.embeddings import Embedder, FromFile, SentenceEncoder, TfIdf
from ega_jax.data.convert.movielens import MOVIELENS
from ega_jax.data.convert.yelp import YELP
from experiments.common import command

SOURCES = {"amazon": AMAZON, "yelp": YELP, "movielens": MOVIELENS}

_SOURCE = flags.DEFINE_enum("source", None, list(SOURCES), "The dataset's kind.", required=True)
_REVIEWS = flags.DEFINE_string("reviews", None, "File of reviews or ratings.", required=True)
_METADATA = flags.DEFINE_string("metadata", None, "File of items; needed unless --embedding=npy.")
_OUT = flags.DEFINE_string("out", None, "Folder to make; absent or empty.", required=True)
_CORE = flags.DEFINE_integer(
    "k_core", 5, "Leave out users and items with fewer actions than this.", lower_bound=1
)
_EMBEDDING = flags.DEFINE_enum(
    "embedding",
    "tfidf",
    ["tfidf", "npy", "sentence"],
    "Item embeddings: TF-IDF of the text (extra `convert`), your own array, or a sentence "
    "encoder (extra `sentence`).",
)
_WIDTH = flags.DEFINE_integer("width", 256, "Width of TF-IDF embeddings.", lower_bound=1)
_NPY = flags.DEFINE_string("npy", None, "For --embedding=npy: array [items, width] of floats.")
_NPY_IDS = flags.DEFINE_string(
    "npy_ids", None, "For --embedding=npy: text file with the item of each row, one a line."
)
_MODEL = flags.DEFINE_string(
    "sentence_model",
    "sentence-transformers/all-MiniLM-L6-v2",
    "For --embedding=sentence: name or folder of the model.",
)


def _embedder() -> Embedder:
    if _EMBEDDING.value == "npy":
        if not (_NPY.value and _NPY_IDS.value):
            raise app.UsageError("--embedding=npy needs --npy and --npy_ids")
        return FromFile(Path(_NPY.value), Path(_NPY_IDS.value))
    if not _METADATA.value:
        raise app.UsageError(f"--embedding={_EMBEDDING.value} needs --metadata")
    if _EMBEDDING.value == "sentence":
        return SentenceEncoder(_MODEL.value)
    return TfIdf(_WIDTH.value)


def main() -> None:
    """Converts, and prints the report."""
    embedder = _embedder()
    metadata = Path(_METADATA.value) if _METADATA.value else None
    print(
        convert(
            SOURCES[_SOURCE.value],
            Path(_REVIEWS.value),
            metadata,
            Path(_OUT.value),
            embedder,
            _CORE.value,
        )
    )


if __name__ == "__main__":
    command.run(main, __doc__)
