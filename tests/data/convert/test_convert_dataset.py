import json
import os
from pathlib import Path

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
    assert (report.counts.read, report.counts.kept, report.summary.num_actions) == (32, 30, 30)
    assert (report.actions.malformed, report.items.malformed) == (2, 1)
    assert report.items_without_text == 1
    assert "reviews.json:33: " in str(report)
    assert "30 of 32 actions kept by the filter" in str(report)
    assert "0 repeats of (user, item, time) left out" in str(report)
    assert "0 of them (0.0%) share user and time with another" in str(report)
    assert "times from 0 to 504 (1970-01-01 to 1970-01-01)" in str(report)

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


MOVIES = ["Fabuleux destin d'Amélie Poulain, Le (2001)", "Señorita", "À nous", "Heat", "Ænima"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("separator", ["::", ","])
def test_movielens_becomes_a_valid_dataset(tmp_path, encoding, separator):
    """The files of 10M and those with a header are UTF-8, those of 1M are latin-1."""
    quoted = [f'"{title}"' if separator == "," else title for title in MOVIES]
    lines = [separator.join(f"{u} {i} 4 {i}".split()) for u in range(1, 7) for i in range(1, 6)]
    movies = [separator.join([str(n + 1), quoted[n], "Drama"]) for n in range(5)]
    headers = ["userId,movieId,rating,timestamp"], ["movieId,title,genres"]
    for name, rows, header in zip(("ratings", "movies"), (lines, movies), headers, strict=True):
        text = "\r\n".join([*(header if separator == "," else []), *rows])
        (tmp_path / name).write_text(text, encoding=encoding)
    out = tmp_path / "out"
    report = convert(MOVIELENS, tmp_path / "ratings", tmp_path / "movies", out, TfIdf(3), k=5)
    assert open_dataset(out).summary == report.summary
    assert (report.actions.malformed, report.items.malformed) == (0, 0)
    assert titles_in(out) == MOVIES


def rated(path, rows):
    path.write_text("\n".join("::".join(map(str, row)) for row in rows))
    return path


def by_names(items):
    """An embedding that needs no text."""
    return np.array([[float(item.item), 1.0] for item in items])


def histories_in(folder):
    names = pq.read_table(folder / "items.parquet")["source_id"].to_pylist()
    rows = pq.read_table(folder / "sequences.parquet").to_pylist()
    return {row["source_id"]: [int(names[item]) for item in row["items"]] for row in rows}


@pytest.mark.parametrize("keep", [False, True])
def test_repeats_are_counted_and_left_out(tmp_path, keep):
    rows = [(user, item, 5, 10 * item) for user in (1, 2) for item in (1, 2)]
    rows += [(1, 3, rating, 90) for rating in range(6)] + [(2, 3, 5, 90), (1, 1, 5, 99)]
    ratings = rated(tmp_path / "ratings.dat", rows)
    report = convert(MOVIELENS, ratings, None, tmp_path / "out", by_names, 2, keep)
    expected = [1, 2, 3, 3, 3, 3, 3, 3, 1] if keep else [1, 2, 3, 1]
    assert histories_in(tmp_path / "out") == {"1": expected, "2": [1, 2, 3]}
    assert (report.counts.repeats, report.counts.tied) == (5, 6 if keep else 0)
    done = "kept" if keep else "left out"
    assert f"5 repeats of (user, item, time) {done}" in str(report)


def test_repeats_do_not_help_through_the_filter(tmp_path):
    rows = [(1, item, 5, item) for item in (1, 2)] + [(2, 1, 5, 1)] * 6
    ratings = rated(tmp_path / "ratings.dat", rows)
    message = "no actions are left after 2-core filtering of 8 actions, 5 repeats"
    with pytest.raises(DataError, match=message):
        convert(MOVIELENS, ratings, None, tmp_path / "out", by_names, 2)


def test_ties_are_counted_and_do_not_follow_item_ids(tmp_path):
    rows = [(user, item, 5, item // 20) for item in range(60) for user in (2, 1)]
    rows += [(1, 60, 5, 0), (2, 60, 5, 99)]
    ratings = rated(tmp_path / "ratings.dat", rows)
    report = convert(MOVIELENS, ratings, None, tmp_path / "out", by_names, 1)
    assert report.counts.tied == 121
    assert (
        "121 of them (99.2%) share user and time with another; those are in the order of a hash "
        "of user and item"
    ) in str(report)
    histories = histories_in(tmp_path / "out")
    assert [item // 20 for item in histories["2"]] == [0] * 20 + [1] * 20 + [2] * 20 + [3]
    assert 20 < (np.diff(histories["2"]) > 0).sum() < 40
    rated(tmp_path / "other.dat", reversed(rows))
    convert(MOVIELENS, tmp_path / "other.dat", None, tmp_path / "again", by_names, 1)
    assert histories_in(tmp_path / "again") == histories


def test_a_file_in_time_order_keeps_its_order(tmp_path):
    rows = [(user, item, 5, item % 3) for item in (3, 0, 6, 4, 1, 7, 8, 2, 5) for user in (1, 2)]
    ratings = rated(tmp_path / "ratings.dat", rows)
    report = convert(MOVIELENS, ratings, None, tmp_path / "out", by_names, 1)
    assert histories_in(tmp_path / "out")["2"] == [3, 0, 6, 4, 1, 7, 8, 2, 5]
    assert "in the order of the file, which is in time order" in str(report)


def test_of_several_descriptions_the_first_with_text_is_kept(tmp_path):
    rows = [(user, item, 5, item) for user in (1, 2) for item in (1, 2)]
    ratings = rated(tmp_path / "ratings.dat", rows)
    movies = [(1, "One", "A"), (2, "", ""), (1, "", ""), (2, "Two", "B"), (1, "Uno", "A")]
    paths = ratings, rated(tmp_path / "movies.dat", movies)
    report = convert(MOVIELENS, *paths, tmp_path / "out", by_names, 1)
    assert titles_in(tmp_path / "out") == ["One", "Two"]
    assert report.repeated_items == 2


def test_metadata_of_other_items_are_refused(tmp_path):
    ratings = rated(tmp_path / "ratings.dat", [(1, 1, 5, 1), (1, 2, 5, 2)])
    movies = rated(tmp_path / "movies.dat", [(7, "Seven", "A")])
    message = r"movies.dat: has no text for any of the 2 items; the reviews have '1', this file '7'"
    with pytest.raises(DataError, match=message):
        convert(MOVIELENS, ratings, movies, tmp_path / "out", by_names, 1)


def test_users_with_one_item_are_kept_if_asked(tmp_path):
    ratings = rated(tmp_path / "ratings.dat", [(1, 1, 5, -7), (2, 2, 5, 1588615855070)])
    report = convert(MOVIELENS, ratings, None, tmp_path / "out", by_names, 1)
    assert histories_in(tmp_path / "out") == {"1": [1], "2": [2]}
    assert "times from -7 to 1588615855070 (1969-12-31 to 2020-05-04)" in str(report)
    assert "WARNING" not in str(report)


def test_mixed_units_of_time_are_reported(tmp_path):
    ratings = rated(tmp_path / "ratings.dat", [(1, 1, 5, 1588615855), (1, 2, 5, 1588615855070)])
    report = convert(MOVIELENS, ratings, None, tmp_path / "out", by_names, 1)
    assert "WARNING: seconds and finer units seem to be mixed" in str(report)


def failing(items):
    raise DataError("embedding", "no")


def not_finite(items):
    return np.full((len(items), 2), np.nan)


@pytest.mark.parametrize(
    ("embed", "k", "message"),
    [
        (failing, 5, "embedding: no"),
        (not_finite, 5, "column 'embedding', row 0: features must be finite"),
        (
            TfIdf(3),
            9,
            r"no actions are left after 9-core filtering of 32 actions, 0 repeats; 34 records",
        ),
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


@pytest.mark.parametrize("place", [".", "link", "mounted"])
def test_an_empty_folder_is_filled_in_place(amazon_files, tmp_path, monkeypatch, place):
    _, *paths = amazon_files
    out = tmp_path / "mounted"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    inode = out.stat().st_ino
    monkeypatch.chdir(out if place == "." else tmp_path)
    convert(AMAZON, *paths, Path(place), TfIdf(3), k=5)
    assert out.stat().st_ino == inode
    assert sorted(path.name for path in out.iterdir()) == ["items.parquet", "sequences.parquet"]
    assert validate(out).num_items == 5


def test_an_empty_folder_stays_empty_if_a_file_cannot_be_moved(amazon_files, tmp_path, monkeypatch):
    _, *paths = amazon_files
    out, replace = tmp_path / "out", os.replace
    out.mkdir()

    def full(source, target):
        if Path(target).name == "sequences.parquet":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"out: cannot be written \(disk full\)"):
        convert(AMAZON, *paths, out, TfIdf(3), k=5)
    assert not list(out.iterdir())


def test_a_place_that_cannot_be_written_is_named(amazon_files, tmp_path):
    _, *paths = amazon_files
    with pytest.raises(DataError, match=r"reviews.json/out: cannot be written"):
        convert(AMAZON, *paths, paths[0] / "out", TfIdf(3), k=5)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="dangling: already exists and is not an empty folder"):
        convert(AMAZON, *paths, tmp_path / "dangling", TfIdf(3), k=5)
    assert not (tmp_path / "nowhere").exists()


def test_businesses_of_a_csv_need_no_names(tmp_path):
    rows = [
        f"u{user},b{item},20{user}0-01-0{item + 1}" for user in range(1, 6) for item in range(5)
    ]
    (tmp_path / "review.csv").write_text("\n".join(["user_id,business_id,date", *rows]))
    places = [f"b{item},Phoenix,Food {item};Tea" for item in range(5)]
    (tmp_path / "business.csv").write_text("\n".join(["business_id,city,categories", *places]))
    convert(YELP, tmp_path / "review.csv", tmp_path / "business.csv", tmp_path / "out", TfIdf(2), 5)
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert [item["categories"] for item in items] == [[f"Food {n}", "Tea"] for n in range(5)]
    assert {item["title"] for item in items} == {""}
