import json

import pytest

from ega_jax.data.convert.amazon import AMAZON
from ega_jax.data.convert.movielens import MOVIELENS
from ega_jax.data.convert.raw_files import RawFile
from ega_jax.data.convert.records import RecordCounts, records
from ega_jax.data.convert.source import Action, ItemText
from ega_jax.data.convert.yelp import YELP
from ega_jax.data.tables import DataError


@pytest.fixture
def parse(tmp_path):
    """Reads a file that holds one line, or an object as JSON, and gives its one record."""

    def parse(layout, line):
        text = line if isinstance(line, str) else json.dumps(line)
        (tmp_path / "raw").write_text(text)
        (record,) = records(RawFile.inspect(tmp_path / "raw"), layout, RecordCounts())
        return record

    return parse


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"reviewerID": "A", "asin": "B0", "unixReviewTime": 7}, Action("A", "B0", 7)),
        (
            {"user_id": "A", "asin": "B0", "parent_asin": "B1", "timestamp": 1588615855070},
            Action("A", "B1", 1588615855070),
        ),
        ("{'reviewerID': 'A', 'asin': 'B0', 'unixReviewTime': 7}", Action("A", "B0", 7)),
        ("A,B0,5.0,1369699200", Action("A", "B0", 1369699200)),
        ("B00L5JHZJO,A39HTATAQ9V7YF,5.0,7\r\n", Action("A39HTATAQ9V7YF", "B00L5JHZJO", 7)),
        ("user_id,parent_asin,rating,timestamp\nA,B1,4.0,7", Action("A", "B1", 7)),
    ],
)
def test_amazon_reviews(parse, record, expected):
    assert parse(AMAZON.actions, record) == expected


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
        (
            '{"asin": "B0", "title": "7&quot; &amp;amp; up", "category": ["A &amp; B"], '
            '"brand": "L&#39;Or&eacute;al"}',
            ItemText("B0", '7" & up', ("A & B",), "L'Oréal"),
        ),
    ],
)
def test_amazon_metadata(parse, line, expected):
    assert parse(AMAZON.items, line) == expected


def test_yelp_reviews(parse):
    for date, time in (("1970-01-02 00:00:01", 86401), ("1970-01-02", 86400)):
        record = {"user_id": "u", "business_id": "b", "date": date, "stars": 5}
        assert parse(YELP.actions, record) == Action("u", "b", time)
    text = 'review_id,user_id,business_id,date,text\nr,u,b,1970-01-02,"one,\n""two"""\n'
    assert parse(YELP.actions, text) == Action("u", "b", 86400)


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ("Food, Fast Food", ("Food", "Fast Food")),
        ("Food;Fast Food", ("Food", "Fast Food")),
        ("Beauty &amp; Spas, Food", ("Beauty & Spas", "Food")),
        (["Food"], ("Food",)),
        ("", ()),
        (None, ()),
    ],
)
def test_yelp_businesses(parse, categories, expected):
    record = {"business_id": "b", "name": "Sal's", "city": "Reno", "categories": categories}
    got = parse(YELP.items, record)
    assert got == ItemText("b", "Sal's", expected, "Reno")
    assert got.words == " ".join(["Sal's", *expected, "Reno"])


@pytest.mark.parametrize("name", [{"name": ""}, {"name": None}, {"name": 7}, {}])
def test_yelp_businesses_without_a_name_keep_the_rest(parse, name):
    record = {"business_id": "b", "city": "Reno", "categories": "Food"} | name
    assert parse(YELP.items, record) == ItemText("b", "", ("Food",), "Reno")


@pytest.mark.parametrize(
    "line",
    [
        "1\t20\t4\t881",
        "1::20::4.5::881",
        "1,20,4.5,881",
        "userId,movieId,rating,timestamp\r\n1,20,4.5,881\r\n",
        '"userId","movieId","rating","timestamp"\n1,20,3.5,"1970-01-01 00:14:41"',
    ],
)
def test_movielens_ratings(parse, line):
    assert parse(MOVIELENS.actions, line) == Action("1", "20", 881)


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("20|Heat (1995)|01-Jan-1995||http://x|0|1|" + "0|" * 5 + "1|" + "0|" * 10 + "0", "Heat"),
        ("20::Heat (1995)::Action|Documentary", "Heat"),
        ("20::What, no title? (1995)::Action|Documentary", "What, no title?"),
        ('20,"American President, The (1995)",Action|Documentary', "American President, The"),
        ("movieId,title,genres\n20,Q &amp; A (1995),Action|Documentary", "Q & A"),
    ],
)
def test_movielens_movies(parse, line, title):
    expected = ItemText("20", f"{title} (1995)", ("Action", "Documentary"))
    assert parse(MOVIELENS.items, line) == expected


@pytest.mark.parametrize(
    "line",
    ["20::Heat::(no genres listed)", "20,Heat,", "20|Heat|||" + "|1" + "|0" * 18],
)
def test_movies_without_a_genre_have_no_category(parse, line):
    assert parse(MOVIELENS.items, line) == ItemText("20", "Heat", ())


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        (AMAZON.actions, '{"reviewerID": "A", "asin": "B0"}'),
        (AMAZON.actions, '{"reviewerID": "A", "unixReviewTime": 7}'),
        (AMAZON.actions, '{"reviewerID": "", "asin": "B0", "unixReviewTime": 7}'),
        (AMAZON.actions, '{"reviewerID": 3, "asin": "B0", "unixReviewTime": 7}'),
        (AMAZON.actions, '{"reviewerID": "A", "asin": "B0", "unixReviewTime": 1e99}'),
        (AMAZON.items, "['asin']"),
        (AMAZON.items, "{'asin': __import__('os')}"),
        (YELP.actions, '{"user_id": "u", "business_id": "b", "date": "soon"}'),
        (YELP.items, "{}"),
        (MOVIELENS.actions, "1,20,4.5"),
        (MOVIELENS.actions, "1,20,good,881"),
        (MOVIELENS.actions, "1,x,4.5,881"),
        (MOVIELENS.items, "20::Heat"),
        (MOVIELENS.items, '{"movieId": 20}'),
    ],
)
def test_malformed_records_are_refused(parse, layout, line):
    with pytest.raises(DataError, match="expected "):
        parse(layout, line)
