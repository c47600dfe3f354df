"""MovieLens: `u.data` and `u.item` (100k), `.dat` files (1M, 10M), `.csv` files (20M and later)."""

import csv

from ega_jax.data.convert.source import Action, ItemText, Source

# fmt: off
_GENRES = (  # in the order of the flags of `u.item`.
    "unknown", "Action", "Adventure", "Animation", "Children's",
    "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance",
    "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on


def parse_rating(line: str) -> Action | None:
    """A line of the ratings, of any of the three layouts."""
    separator = next((mark for mark in ("::", "\t") if mark in line), ",")
    fields = line.split(separator)
    if fields[0] == "userId":
        return None
    user, item, rating, time = fields
    float(rating)
    return Action(_number(user), _number(item), int(time))


def parse_movie(line: str) -> ItemText | None:
    """A line of the movies, of any of the three layouts."""
    if line.count("|") >= len(_GENRES):
        fields = line.split("|")
        flags = zip(_GENRES, fields[-len(_GENRES) :], strict=True)
        return ItemText(_number(fields[0]), fields[1], tuple(n for n, on in flags if on == "1"))
    # The csv files alone are UTF-8; all are read as what the others are.
    as_csv = lambda: next(csv.reader([line.encode("latin-1").decode("utf-8", "replace")]))
    fields = line.split("::") if "::" in line else as_csv()
    if fields[0] == "movieId":
        return None
    item, title, genres = fields
    return ItemText(_number(item), title, tuple(genres.split("|")))


def _number(text: str) -> str:
    return str(int(text))


MOVIELENS = Source(parse_rating, parse_movie, encoding="latin-1")
