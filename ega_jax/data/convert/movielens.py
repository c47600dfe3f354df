"""MovieLens: `u.data` and `u.item` (100k), `.dat` files (1M, 10M), `.csv` files (20M and later)."""

from collections.abc import Mapping
from typing import Any

from ega_jax.data.convert.fields import id_field, texts, time_field
from ega_jax.data.convert.source import Action, Columns, ItemText, Layout, Source

# fmt: off
_GENRES = (  # in the order of the flags of `u.item`, after the flag "unknown".
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime",
    "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical",
    "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
_NO_GENRE = ("", "(no genres listed)")
USER, ITEM = ("userId", "user"), ("movieId", "item_id", "item")
_RATING = ("userId", "movieId", "rating", "timestamp")
_MOVIE = ("movieId", "title", "genres")
_U_ITEM = ("movieId", "title", "release", "video", "url", "unknown", *_GENRES)


def parse_rating(record: Mapping[str, Any]) -> Action:
    """A rating; its value must be a number and is not used."""
    float(id_field(record, "rating"))
    return Action(_number(record, USER), _number(record, ITEM), time_field(record, "timestamp"))


def parse_movie(record: Mapping[str, Any]) -> ItemText:
    """A movie, with the text of its genres or with a flag for each."""
    if "genres" in record:
        genres = [name for name in str(record["genres"]).split("|") if name not in _NO_GENRE]
    else:
        genres = [name for name in _GENRES if record.get(name) == "1"]
    title = " ".join(texts(record.get("title")))
    return ItemText(_number(record, ITEM), title, tuple(texts(genres)))


def _number(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return str(int(id_field(record, *names)))


MOVIELENS = Source(
    Layout(
        parse_rating,
        required=(USER, ITEM, ("rating",), ("timestamp",)),
        optional=(),
        columns=tuple(Columns(separator, _RATING) for separator in ("::", "\t", ",")),
        expected=(
            "ratings with the columns user, movie, rating and time, separated by '::' "
            "(ratings.dat), tabs (u.data) or commas (ratings.csv)"
        ),
    ),
    Layout(
        parse_movie,
        required=(ITEM, ("title",), ("genres",)),
        optional=(),
        columns=(Columns("::", _MOVIE), Columns("|", _U_ITEM), Columns(",", _MOVIE)),
        expected=(
            "movies with the columns movie, title and genres, separated by '::' (movies.dat) or "
            f"commas (movies.csv); or the {len(_U_ITEM)} columns of u.item, separated by '|'"
        ),
    ),
)
