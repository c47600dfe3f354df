import json

import pytest

from ega_jax.data.convert.amazon import REVIEWS
from ega_jax.data.convert.movielens import MOVIELENS
from ega_jax.data.convert.raw_files import RawFile
from ega_jax.data.convert.records import RecordCounts, records
from ega_jax.data.convert.source import Action
from ega_jax.data.tables import DataError

GOOD = {"reviewerID": "A", "asin": "B", "unixReviewTime": 7}


def read(path, layout, text):
    path.write_text(text)
    counts = RecordCounts()
    return list(records(RawFile.inspect(path), layout, counts)), counts


def test_malformed_records_are_counted_and_named(tmp_path):
    lines = [json.dumps(GOOD), "", "{", '{"asin": "B"}', "[]", json.dumps(GOOD)]
    path = tmp_path / "reviews.json"
    got, counts = read(path, REVIEWS, "\n".join(lines))
    assert got == [Action("A", "B", 7)] * 2
    assert (counts.read, counts.malformed) == (5, 3)
    places = [example.removeprefix(f"{path}:").partition(": ")[0] for example in counts.examples]
    assert places == ["3", "4", "5"]
    assert f"{path}:4: no field 'reviewerID' or 'user_id'" in str(counts)
    assert "5 records read, 3 malformed and left out" in str(counts)


def test_only_the_first_few_are_quoted(tmp_path):
    _, counts = read(tmp_path / "r.json", REVIEWS, json.dumps(GOOD) + "\n{" * 100)
    assert (counts.malformed, len(counts.examples)) == (100, 5)
    assert str(counts).endswith("...")


@pytest.mark.parametrize("line", ['{"a": 1}', "['a']\n{"])
def test_a_file_without_a_good_record_is_refused(tmp_path, line):
    with pytest.raises(DataError, match=r"r\.json: .*; expected reviews as JSON lines"):
        read(tmp_path / "r.json", REVIEWS, line)


def test_the_first_bad_record_and_the_form_that_is_expected_are_named(tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path / "ratings.dat", MOVIELENS.actions, "a::b::c::1\n" * 36)
    message = str(error.value)
    assert "none of its 36 records can be used; first" in message
    assert f"{tmp_path / 'ratings.dat'}:1: " in message
    assert "expected ratings with the columns user, movie, rating and time" in message


def test_a_header_alone_is_refused(tmp_path):
    with pytest.raises(DataError, match="none of its 0 records can be used; expected ratings"):
        read(tmp_path / "ratings.csv", MOVIELENS.actions, "userId,movieId,rating,timestamp\n")


def test_other_columns_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"m\.csv: unknown columns in .*; expected movies with"):
        read(tmp_path / "m.csv", MOVIELENS.items, "userId,movieId,rating,timestamp\n1,2,3,4\n")
