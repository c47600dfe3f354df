"""The logging policy of a written log: propensities of any slates, and uniformly drawn slates."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.data.books import Books
from ega_jax.data.market import policy
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.requests import Book, Requests, Slates
from ega_jax.data.market.scores import Ranker


@dataclasses.dataclass(frozen=True)
class Logger:
    """The policy that served a log. It reads what the log records, so it belongs to no truth."""

    ranker: Ranker
    config: MarketConfig

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes `logger.npz` into a dataset folder."""
        fields = {name: np.asarray(x) for name, x in vars(self.ranker).items()}
        np.savez(pathlib.Path(folder) / "logger.npz", allow_pickle=False, **fields)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Logger":
        """Reads the logger of a dataset folder.

        Raises:
          FileNotFoundError: the folder is no log of a market.
        """
        path = pathlib.Path(folder)
        if not (path / "logger.npz").exists():
            raise FileNotFoundError(f"{path}/logger.npz: no such file: no market wrote this log")
        market = json.loads((path / "dataset.json").read_text())["market"]
        with np.load(path / "logger.npz") as arrays:
            ranker = Ranker(**{name: jnp.asarray(arrays[name]) for name in arrays.files})
        return cls(ranker, MarketConfig(**market))

    def propensity(
        self, requests: Requests, books: Book, organic_poi: jax.Array, slates: Slates
    ) -> jax.Array:
        """Returns the propensity `[B, K]` of each slot of any slates, as the log records it.

        Args:
          requests: `B` of them.
          books: `[B, A]`, the book of each request.
          organic_poi: `[B, O]` in upstream order.
          slates: empty slots on the right.
        """
        given = self.ranker, requests, books, organic_poi, slates
        return _of_slates(policy.propensity, *given, self.config)

    def uniform_propensity(
        self, requests: Requests, books: Book, organic_poi: jax.Array, slates: Slates
    ) -> jax.Array:
        """Returns the probability `[B]` of any slates under the uniform policy."""
        given = self.ranker, requests, books, organic_poi, slates
        return _of_slates(policy.uniform_propensity, *given, self.config)

    def uniform_slates(
        self, key: jax.Array, requests: Requests, books: Book, organic_poi: jax.Array
    ) -> Slates:
        """Draws a slate `[B, K]` for each request from the uniform policy."""
        keys = jax.random.split(key, len(organic_poi))
        return _uniform_slates(keys, self.ranker, requests, books, organic_poi, self.config)


def book_rows(books: Books, number: np.ndarray) -> Book:
    """Returns the books `[B, A]` of requests from a log's books, by their numbers `[B]`."""
    return Book(*map(jnp.asarray, books.rows(number)))


@functools.partial(jax.jit, static_argnames=("chances", "config"))
def _of_slates(
    chances: Callable[..., jax.Array],
    ranker: Ranker,
    requests: Requests,
    books: Book,
    organic_poi: jax.Array,
    slates: Slates,
    config: MarketConfig,
) -> jax.Array:
    """Applies a function of `policy`, for requests of one book, to requests of a book each."""

    def one(requests, book, organic_poi, slates):
        return chances(ranker, requests, book, organic_poi, slates, config)

    rows = jax.tree.map(_alone, (requests, organic_poi, slates))
    return jax.vmap(one)(rows[0], books, *rows[1:])[:, 0]


@functools.partial(jax.jit, static_argnames="config")
def _uniform_slates(
    keys: jax.Array,
    ranker: Ranker,
    requests: Requests,
    books: Book,
    organic_poi: jax.Array,
    config: MarketConfig,
) -> Slates:
    def one(key, requests, book, organic_poi):
        organic = policy.Organic(organic_poi, jnp.zeros(organic_poi.shape))
        return policy.uniform_slates(key, ranker, requests, book, organic, config)

    rows = jax.tree.map(_alone, (requests, organic_poi))
    return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(keys, rows[0], books, rows[1]))


def _alone(x: jax.Array) -> jax.Array:
    """Makes each row `[B, ...]` a batch of one, `[B, 1, ...]`."""
    return jnp.asarray(x)[:, None]
