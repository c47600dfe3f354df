r"""Converts a public dataset to the sequences format.

Amazon reviews, of 2014, 2018 or 2023:
  python -m experiments.convert --source=amazon --reviews=reviews_Beauty_5.json.gz \
      --metadata=meta_Beauty.json.gz --out=data/beauty

  --reviews: JSON lines or a JSON array; or ratings as csv: user,item,rating,timestamp without a
  header (2014), item,user,rating,timestamp without a header (2018; told by the form of product
  numbers), or with the header user_id,parent_asin,rating,timestamp (2023).
  --metadata: JSON lines, a JSON array, lines of Python literals (2014), or csv with a header.

Yelp Open Dataset (JSON lines, a JSON array, or csv with a header):
  python -m experiments.convert --source=yelp --out=data/yelp \
      --reviews=yelp_academic_dataset_review.json --metadata=yelp_academic_dataset_business.json

MovieLens (u.data and u.item, ratings.dat and movies.dat, or ratings.csv and movies.csv):
  python -m experiments.convert --source=movielens --reviews=ml-1m/ratings.dat \
      --metadata=ml-1m/movies.dat --out=data/ml-1m

Files are plain text or compressed (.gz, .bz2, .xz). They are read as UTF-8, or as latin-1 if they
are not UTF-8; HTML entities in texts (&amp;) are replaced. Times are numbers of any unit, or
dates. Malformed records are left out, counted and named by file and line; if none can be used, the
command fails and says what it expects.

Repeats, which share user, item and time with an earlier action, are left out and counted;
--keep_repeats keeps them. Actions of a user at the same time are ordered by a hash of user and
item, because the order of a file is often that of item ids, which must not become the order of a
history. A file whose lines are all in time order keeps its own order. The report names the share
of such ties.

Item embeddings are made from the texts of --metadata, or read: --embedding=npy takes a .npy array
[rows, width] (--npy) and a text file with the item id of each row, one a line (--npy_ids).
"""

import os
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
_KEEP_REPEATS = flags.DEFINE_bool(
    "keep_repeats", False, "Keep actions that share user, item and time with an earlier one."
)
_EMBEDDING = flags.DEFINE_enum(
    "embedding",
    "tfidf",
    ["tfidf", "npy", "sentence"],
    "Item embeddings: TF-IDF of the text (extra `convert`), your own array, or a sentence "
    "encoder (extra `sentence`).",
)
_WIDTH = flags.DEFINE_integer("width", 256, "Width of TF-IDF embeddings.", lower_bound=1)
_NPY = flags.DEFINE_string("npy", None, "For --embedding=npy: a .npy file, [rows, width] numbers.")
_NPY_IDS = flags.DEFINE_string(
    "npy_ids", None, "For --embedding=npy: text file with the item id of each row, one a line."
)
_MODEL = flags.DEFINE_string(
    "sentence_model",
    "sentence-transformers/all-MiniLM-L6-v2",
    "For --embedding=sentence: name or folder of the model.",
)


def _embedder() -> Embedder:
    if _EMBEDDING.value == "npy":
        if not (_NPY.value and _NPY_IDS.value):
            raise app.UsageError("--embedding=npy needs --npy and --npy_ids", exitcode=2)
        return FromFile(_path(_NPY.value), _path(_NPY_IDS.value))
    if not _METADATA.value:
        raise app.UsageError(f"--embedding={_EMBEDDING.value} needs --metadata", exitcode=2)
    if _EMBEDDING.value == "sentence":
        return SentenceEncoder(_MODEL.value)
    return TfIdf(_WIDTH.value)


def _path(value: str) -> Path:
    """A path with `~` expanded, which shells leave as it is in `--out=~/data`."""
    return Path(os.path.expanduser(value))


def main() -> None:
    """Converts, and prints the report."""
    embedder = _embedder()
    metadata = _path(_METADATA.value) if _METADATA.value else None
    print(
        convert(
            SOURCES[_SOURCE.value],
            _path(_REVIEWS.value),
            metadata,
            _path(_OUT.value),
            embedder,
            _CORE.value,
            _KEEP_REPEATS.value,
        )
    )


if __name__ == "__main__":
    command.run(main, __doc__)
