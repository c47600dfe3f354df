import io

import pytest

from ega_jax.data.convert.amazon import METADATA, REVIEWS
from ega_jax.data.convert.delimited import Table, UnknownColumnsError
from ega_jax.data.convert.json_records import Malformed
from ega_jax.data.convert.movielens import MOVIELENS
from ega_jax.data.convert.yelp import YELP


def rows(layout, text):
    head = [line for line in text.splitlines() if line.strip()]
    return list(Table.detect(layout, head).rows(io.StringIO(text, newline="")))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quoted_cells_hold_commas_quotes_and_line_ends(end):
    lines = ["movieId,title,genres", '7,"Heat, ""the""', 'film (1995)",A|B', "8,Plain (1996),C"]
    got = rows(MOVIELENS.items, end.join(lines))
    assert got == [
        (2, {"movieId": "7", "title": f'Heat, "the"{end}film (1995)', "genres": "A|B"}),
        (4, {"movieId": "8", "title": "Plain (1996)", "genres": "C"}),
    ]


def test_an_open_quote_costs_its_own_line_alone():
    text = 'movieId,title,genres\n1,"Open,A\n2,Two,A\n3,"Th, ree",A\n4,Four,A\n'
    got = rows(MOVIELENS.items, text)
    assert [number for number, row in got if not isinstance(row, Malformed)] == [3, 4, 5]
    assert got[0] == (2, Malformed("not csv (',' expected after '\"')"))
    assert rows(MOVIELENS.items, text.replace('"Th, ree"', "Three"))[0] == (
        2,
        Malformed("not csv (a quote is opened and not closed)"),
    )


def test_inches_need_no_quotes():
    assert rows(MOVIELENS.items, '1,7" LCD,A')[0][1]["title"] == '7" LCD'


@pytest.mark.parametrize(
    "header",
    ["user_id,parent_asin,rating,timestamp", "UserId,ProductId,Rating,Timestamp", "﻿"],
)
def test_headers_of_ratings(header):
    text = f"{header}\nA1,B1,5.0,7" if header != "﻿" else "user,item,rating,time\nA1,B1,5.0,7"
    got = rows(REVIEWS, text)
    record = REVIEWS.parse(got[0][1])
    assert (len(got), got[0][0]) == (1, 2)
    assert (record.user, record.item, record.time) == ("A1", "B1", 7)


def test_columns_of_a_header_are_in_any_order():
    text = '"timestamp","history","parent_asin","user_id"\n7,"B0 B9",B1,A1\n'
    record = REVIEWS.parse(rows(REVIEWS, text)[0][1])
    assert (record.user, record.item, record.time) == ("A1", "B1", 7)
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n3\t5\t4\t8.0\n"
    record = MOVIELENS.actions.parse(rows(MOVIELENS.actions, text)[0][1])
    assert (record.user, record.item, record.time) == ("3", "5", 8)


def test_ratings_without_a_header_name_the_user_or_the_item_first():
    """Those of 2014 and of 2018; most rows decide for all."""
    users = ["A39HTATAQ9V7YF", "A3JM6GV9MNOF9X", "A1BG8QW55XHN6U"]
    items = ["0205616461", "B00L5JHZJO", "odd"]
    for swapped in (False, True):
        pairs = zip(users, items, strict=True)
        lines = [",".join([*(pair[::-1] if swapped else pair), "5.0", "7"]) for pair in pairs]
        found = [REVIEWS.parse(row) for _, row in rows(REVIEWS, "\n".join(lines))]
        assert [(action.user, action.item) for action in found] == list(
            zip(users, items, strict=True)
        )


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (REVIEWS, "customer,product,score,when\nA1,B1,5.0,7"),
        (REVIEWS, "oops"),
        (METADATA, "B0,Title,Beauty"),
        (YELP.actions, "u,b,2020-01-01"),
        (MOVIELENS.items, "userId,movieId,rating,timestamp\n1,2,3,4"),
        (MOVIELENS.actions, "userId,movieId,tag,timestamp\n1,2,funny,4"),
    ],
)
def test_unknown_columns_are_refused(layout, text):
    with pytest.raises(UnknownColumnsError, match="unknown columns in the first line '"):
        rows(layout, text)


def test_rows_of_another_length_are_malformed():
    got = rows(MOVIELENS.actions, "oops\n1::2::3::4\n\n1::2::3\n")
    names = "expected 4 columns (userId, movieId, rating, timestamp)"
    assert [number for number, _ in got] == [1, 2, 4]
    assert got[0][1] == Malformed(f"{names}, found 1")
    assert got[2][1] == Malformed(f"{names}, found 3")
