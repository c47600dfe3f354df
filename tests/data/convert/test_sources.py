import json

import pytest

from ega_jax.data.convert import amazon, movielens, yelp
from ega_jax.data.convert.source import Action, ItemText


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"reviewerID": "A", "asin": "B0", "unixReviewTime": 7}, Action("A", "B0", 7)),
        (
            {"user_id": "A", "asin": "B0", "parent_asin": "B1", "timestamp": 1588615855070},
            Action("A", "B1", 1588615855070),
        ),
    ],
)
def test_amazon_reviews(record, expected):
    assert amazon.parse_review(json.dumps(record)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "{'asin': 'B0', 'title': \"Nail's\", 'categories': [['Beauty', 'Nails'], ['Beauty']]}",
            ItemText("B0", "Nail's", ("Beauty", "Nails")),
        ),
        (
            '{"asin": "B0", "title": "Nails", "category": ["Beauty"], "description": ["a", "b"]}',
            ItemText("B0", "Nails", ("Beauty",), "a b"),
        ),
        (
            '{"parent_asin": "B0", "title": null, "categories": [], "store": "Shop", "price": 3}',
            ItemText("B0", "", (), "Shop"),
        ),
    ],
)
def test_amazon_metadata(line, expected):
    assert amazon.parse_metadata(line) == expected


def test_yelp_reviews():
    for date, time in (("1970-01-02 00:00:01", 86401), ("1970-01-02", 86400)):
        line = json.dumps({"user_id": "u", "business_id": "b", "date": date, "stars": 5})
        assert yelp.parse_review(line) == Action("u", "b", time)


@pytest.mark.parametrize(
    ("categories", "expected"),
    [("Food, Fast Food", ("Food", "Fast Food")), (["Food"], ("Food",)), (None, ())],
)
def test_yelp_businesses(categories, expected):
    record = {"business_id": "b", "name": "Sal's", "city": "Reno", "categories": categories}
    got = yelp.parse_business(json.dumps(record))
    assert got == ItemText("b", "Sal's", expected, "Reno")
    assert got.words == " ".join(["Sal's", *expected, "Reno"])


@pytest.mark.parametrize("line", ["1\t20\t4\t881", "1::20::4.5::881", "1,20,4.5,881"])
def test_movielens_ratings(line):
    assert movielens.parse_rating(line) == Action("1", "20", 881)


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("20|Heat (1995)|01-Jan-1995||http://x|0|1|" + "0|" * 5 + "1|" + "0|" * 10 + "0", "Heat"),
        ("20::Heat (1995)::Action|Drama", "Heat"),
        ('20,"American President, The (1995)",Action|Drama', "American President, The"),
    ],
)
def test_movielens_movies(line, title):
    expected = ("Action", "Documentary") if line.startswith("20|") else ("Action", "Drama")
    assert movielens.parse_movie(line) == ItemText("20", f"{title} (1995)", expected)


def test_movielens_headers_are_skipped():
    assert movielens.parse_rating("userId,movieId,rating,timestamp") is None
    assert movielens.parse_movie("movieId,title,genres") is None


@pytest.mark.parametrize(
    ("parse", "line"),
    [
        (amazon.parse_review, '{"reviewerID": "A", "asin": "B0"}'),
        (amazon.parse_review, '{"reviewerID": "A", "unixReviewTime": 7}'),
        (amazon.parse_review, '{"reviewerID": "", "asin": "B0", "unixReviewTime": 7}'),
        (amazon.parse_review, '{"reviewerID": 3, "asin": "B0", "unixReviewTime": 7}'),
        (amazon.parse_review, '{"reviewerID": "A", "asin": "B0", "unixReviewTime": 1e99}'),
        (amazon.parse_metadata, "['asin']"),
        (amazon.parse_metadata, "__import__('os')"),
        (yelp.parse_review, '{"user_id": "u", "business_id": "b", "date": "soon"}'),
        (yelp.parse_business, "{}"),
        (movielens.parse_rating, "1,20,4.5"),
        (movielens.parse_rating, "1,20,good,881"),
        (movielens.parse_rating, "1,x,4.5,881"),
        (movielens.parse_movie, "20::Heat"),
    ],
)
def test_malformed_lines_raise(parse, line):
    with pytest.raises((ValueError, LookupError)):
        parse(line)
