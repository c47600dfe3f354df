import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from ega_jax.data.convert.amazon import AMAZON
from ega_jax.data.convert.dataset import convert
from ega_jax.data.convert.embeddings import TfIdf
from ega_jax.data.convert.movielens import MOVIELENS
from ega_jax.data.convert.yelp import YELP
from ega_jax.data.pipeline import open_dataset
from ega_jax.data.schema import validate
from ega_jax.data.tables import DataError

USERS, ITEMS = [f"u{n}" for n in range(6)], [f"i{n}" for n in range(5)]


@pytest.fixture
def amazon_files(tmp_path):
    """Six users review five items each; a rare user, a rare item, and three malformed lines."""
    rng = np.random.default_rng(0)
    reviews = [
        {"reviewerID": user, "asin": item, "unixReviewTime": 100 * number + place}
        for number, user in enumerate(USERS)
        for place, item in enumerate(rng.permutation(ITEMS).tolist())
    ]
    rng.shuffle(reviews)
    rare = [
        {"reviewerID": "rare", "asin": "i0", "unixReviewTime": 1},
        {"reviewerID": "u0", "asin": "rare", "unixReviewTime": 1},
    ]
    lines = [json.dumps(review) for review in [*reviews, *rare]] + ["{", '{"asin": "i0"}']
    (tmp_path / "reviews.json").write_text("\n".join(lines))
    items = [repr({"asin": item, "title": f"title of {item}"}) for item in ITEMS[:4]]
    (tmp_path / "meta.json").write_text("\n".join([*items, "nonsense"]))
    return reviews, tmp_path / "reviews.json", tmp_path / "meta.json"


def test_amazon_becomes_a_valid_dataset(amazon_files, tmp_path):
    reviews, *paths = amazon_files
    report = convert(AMAZON, *paths, tmp_path / "out", TfIdf(3), k=5)
    assert validate(tmp_path / "out") == report.summary
    assert (report.summary.num_items, report.summary.num_rows) == (5, 6)
    assert (report.actions_read, report.summary.num_actions) == (32, 30)
    assert (report.actions.malformed, report.items.malformed) == (2, 1)
    assert report.items_without_text == 1
    assert "reviews.json:33: " in str(report)
    assert "30 of 32 actions kept" in str(report)

    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    sequences = pq.read_table(tmp_path / "out" / "sequences.parquet").to_pylist()
    names = [item["source_id"] for item in items]
    titles = {item["source_id"]: item["title"] for item in items}
    assert titles == {name: f"title of {name}" for name in ITEMS[:4]} | {"i4": ""}
    for sequence in sequences:
        mine = [review for review in reviews if review["reviewerID"] == sequence["source_id"]]
        mine.sort(key=lambda review: review["unixReviewTime"])
        assert [names[item] for item in sequence["items"]] == [review["asin"] for review in mine]
        assert sequence["timestamps"] == [review["unixReviewTime"] for review in mine]


def titles_in(folder):
    return pq.read_table(folder / "items.parquet")["title"].to_pylist()


def test_yelp_becomes_a_valid_dataset(tmp_path):
    reviews = [
        {"user_id": user, "business_id": item, "date": f"2019-01-0{place + 1} 10:00:00"}
        for user in USERS
        for place, item in enumerate(ITEMS)
    ]
    businesses = [{"business_id": i, "name": f"Cafe {i}", "categories": "Food"} for i in ITEMS]
    for name, rows in (("review.json", reviews), ("business.json", businesses)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "data" / "yelp"
    convert(YELP, tmp_path / "review.json", tmp_path / "business.json", out, TfIdf(3), k=5)
    dataset = open_dataset(out)
    assert titles_in(out) == [f"Cafe {item}" for item in ITEMS]
    np.testing.assert_array_equal(dataset.items.values, list(range(5)) * 6)


def test_movielens_becomes_a_valid_dataset(tmp_path):
    lines = [f"{user}::{item}::4::{item}" for user in range(1, 7) for item in range(1, 6)]
    (tmp_path / "ratings.dat").write_text("\n".join(lines))
    movies = [f"{item}::Café no{item} (1995)::Drama" for item in range(1, 6)]
    (tmp_path / "movies.dat").write_text("\n".join(movies), encoding="latin-1")
    paths = tmp_path / "ratings.dat", tmp_path / "movies.dat"
    convert(MOVIELENS, *paths, tmp_path / "out", TfIdf(3), k=5)
    out = tmp_path / "out"
    assert open_dataset(out).summary
    assert titles_in(out) == [f"Café no{n} (1995)" for n in range(1, 6)]


def test_titles_of_csv_files_are_utf_8():
    line = '7,"Amélie, Le Fabuleux destin d\'",Comedy|Romance'.encode().decode("latin-1")
    assert MOVIELENS.parse_item(line).title == "Amélie, Le Fabuleux destin d'"


def failing(items):
    raise DataError("embedding", "no")


def not_finite(items):
    return np.full((len(items), 2), np.nan)


@pytest.mark.parametrize(
    ("embed", "k", "message"),
    [
        (failing, 5, "embedding: no"),
        (not_finite, 5, "column 'embedding', row 0: features must be finite"),
        (TfIdf(3), 9, r"no actions are left after 9-core filtering of 32; 34 lines read"),
    ],
)
def test_a_failure_leaves_nothing_behind(amazon_files, tmp_path, embed, k, message):
    _, *paths = amazon_files
    with pytest.raises(DataError, match=message):
        convert(AMAZON, *paths, tmp_path / "out", embed, k)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "reviews.json"]


def test_an_existing_folder_is_kept(amazon_files, tmp_path):
    _, *paths = amazon_files
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(DataError, match="out: already exists and is not an empty folder"):
        convert(AMAZON, *paths, tmp_path / "out", TfIdf(3), k=5)
    assert (tmp_path / "out" / "mine").read_text() == "precious"
