r"""Converts a public dataset to the sequences format, or a public ad log to the ad-log format.

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

Open Bandit Dataset, a log of one campaign and its items (csv with a header); and AuctionNet, one or
more files of periods (csv with a header), in time order and with commas between:
  python -m experiments.convert --source=open_bandit --log=obd/bts/all/all.csv \
      --metadata=obd/bts/all/item_context.csv --out=data/open-bandit
  python -m experiments.convert --source=auction_net --log=period-7.csv,period-8.csv \
      --out=data/auction-net

These two become ad logs, without histories and creatives; the report says what they lack. All that
follows is about the other sources.

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

from ega_jax.data.convert.ad_log import convert_log
from ega_jax.data.convert.amazon import AMAZON
from ega_jax.data.convert.auction_net import auction_net
from ega_jax.data.convert.dataset import convert
from ega_jax.data.convert.embeddings import Embedder, FromFile, SentenceEncoder, TfIdf
from ega_jax.data.convert.movielens import MOVIELENS
from ega_jax.data.convert.open_bandit import open_bandit
from ega_jax.data.convert.yelp import YELP
from experiments.common import command

SOURCES = {"amazon": AMAZON, "yelp": YELP, "movielens": MOVIELENS}
LOGS = {"open_bandit": open_bandit, "auction_net": auction_net}

_SOURCE = flags.DEFINE_enum("source", None, [*SOURCES, *LOGS], "The dataset's kind.", required=True)
_REVIEWS = flags.DEFINE_string("reviews", None, "File of reviews or ratings; not for ad logs.")
_LOG = flags.DEFINE_list("log", [], "Files of an ad log, in time order; for ad logs alone.")
_METADATA = flags.DEFINE_string(
    "metadata", None, "File of items; needed unless --embedding=npy; auction_net has none."
)
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


def _files() -> list[Path]:
    """The files of actions or impressions; an ad log has its own flag, since it may have several.

    Raises:
      UsageError: the source's flag is missing, or that of other sources is given.
    """
    logs, reviews = _LOG.value, [_REVIEWS.value] if _REVIEWS.value else []
    is_log = _SOURCE.value in LOGS
    files, others = (logs, reviews) if is_log else (reviews, logs)
    if not files or others:
        needed, wrong = ("--log", "--reviews") if is_log else ("--reviews", "--log")
        rule = f"--source={_SOURCE.value} needs {needed} and takes no {wrong}"
        raise app.UsageError(rule, exitcode=2)
    return [_path(file) for file in files]


def main() -> None:
    """Converts, and prints the report."""
    files, out = _files(), _path(_OUT.value)
    metadata = _path(_METADATA.value) if _METADATA.value else None
    if _SOURCE.value in LOGS:
        print(convert_log(LOGS[_SOURCE.value], files, metadata, out))
        return
    print(
        convert(
            SOURCES[_SOURCE.value],
            files[0],
            metadata,
            out,
            _embedder(),
            _CORE.value,
            _KEEP_REPEATS.value,
        )
    )


if __name__ == "__main__":
    command.run(main, __doc__)
