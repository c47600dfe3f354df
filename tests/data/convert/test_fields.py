import pytest

from ega_jax.data.convert.fields import clean_text, id_field, texts, time_field


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("7&quot; x 9&QUOT; &#39;new&#x27;", "7\" x 9\" 'new'"),
        ("M&amp;amp;M&amp;#39;s", "M&M's"),
        ("caf&eacute;", "café"),
        ("AT&T R&D; &section &amp", "AT&T R&D; &section &amp"),
        (" half \ud83d pair\n", "half ? pair"),
        ("日本 1;2&3", "日本 1;2&3"),
    ],
)
def test_text_is_cleaned(text, expected):
    assert clean_text(text) == expected


def test_texts_are_flattened_and_cleaned():
    assert texts([["a &amp; b", ""], None, 3, ("c", ["d"])]) == ["a & b", "c", "d"]
    assert texts("x") == ["x"]
    assert texts(None) == texts({"a": 1}) == texts("  ") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        ("1588615855070", 1588615855070),
        (2**62 + 1, 2**62 + 1),
        ("964982703.0", 964982703),
        (1.5e9, 1500000000),
        ("1.3696992e9", 1369699200),
        (-1.5, -2),
        (" -86400 ", -86400),
        ("1970-01-02", 86400),
        ("1970-01-02 00:00:01", 86401),
        ("1970-01-02T01:00:00+01:00", 86400),
        ("1970-01-02T00:00:00Z", 86400),
        ("1969-12-31 23:59:59", -1),
    ],
)
def test_times(value, expected):
    assert time_field({"time": value}, "when", "time") == expected


@pytest.mark.parametrize("value", [None, True, "", "soon", "nan", float("inf"), [7], "2020-13-01"])
def test_what_is_no_time(value):
    with pytest.raises(ValueError, match=r"'time' must be a number or a date, found"):
        time_field({"time": value}, "time")


def test_ids():
    assert id_field({"b": " A B ", "a": None}, "c", "b", "a") == "A B"
    for value in (3, None, "", "  "):
        with pytest.raises(ValueError, match="'a' must be text, found"):
            id_field({"a": value}, "a")
    with pytest.raises(ValueError, match="surrogates not allowed"):
        id_field({"a": "\ud83d"}, "a")
    with pytest.raises(ValueError, match="no field 'a' or 'b'"):
        id_field({}, "a", "b")
